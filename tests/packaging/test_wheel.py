"""What a stranger gets from `pip install .`: every package, its data, and nothing that needs torch to start."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = (
    "src",
    "proto",
    "services/ledger",
    "services/scheduler",
    "services/validator",
    "services/gateway",
    "services/gpu-agent",
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def modules_in_the_repository() -> set[str]:
    return {
        str(path.relative_to(ROOT / root))
        for root in SOURCE_ROOTS
        for path in (ROOT / root).rglob("*.py")
        if "__pycache__" not in path.parts
    }


def test_every_module_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert modules_in_the_repository() <= names, "a package is missing from tool.hatch.build.targets.wheel.packages"


def test_the_example_and_the_type_markers_are_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"talkoo/demo/digits/task.yaml", "talkoo/demo/digits/digits.py", "talkoo/demo/digits/digits.npz"} <= names
    packages = {name.split("/")[0] for name in names if name.endswith("__init__.py")}
    assert {f"{package}/py.typed" for package in packages} <= names


def test_an_empty_environment_gets_a_working_command(wheel: Path, tmp_path: Path) -> None:
    """The wheel alone on the path, in a fresh process away from the repository: no editable install helps it."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "TALKOO_HOME": str(tmp_path / "home")}
    code = (
        "import sys, talkoo, talkoo.cli; "
        f"assert talkoo.__file__.startswith({str(site)!r}), talkoo.__file__; "
        "sys.exit(talkoo.cli.run(['--help']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "submit" in result.stdout


@pytest.mark.parametrize(
    "module", ["talkoo_ledger", "talkoo_scheduler", "talkoo_validator", "talkoo_gateway", "talkoo_agent", "talkoo.cli"]
)
def test_services_start_without_loading_torch(module: str) -> None:
    target = module if module == "talkoo.cli" else f"{module}.service"
    heavy = "{'torch', 'sklearn', 'matplotlib'}"
    code = f"import sys, {target}; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
