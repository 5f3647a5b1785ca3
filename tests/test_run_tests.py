"""Failed tests get one more chance, alone, and are named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "run_tests.py"
FAILS_ONCE = """
from pathlib import Path
def test_it():
    mark = Path(__file__).with_suffix(".mark")
    seen = mark.exists()
    mark.touch()
    assert seen
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").touch()
    shutil.copy(TOOL, tmp_path / "tools")
    (tmp_path / "tests" / "test_well.py").write_text("def test_it(): pass\n")
    return tmp_path


def run(project: Path) -> tuple[int, str]:
    command = [sys.executable, str(project / "tools" / "run_tests.py"), "-n", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout


def test_what_passes_only_alone_is_named(project: Path) -> None:
    (project / "tests" / "test_moody.py").write_text(FAILS_ONCE)
    status, said = run(project)
    assert status == 0, said
    assert said.endswith("that is to be found:\n    tests/test_moody.py::test_it\n")


def test_what_fails_twice_fails_the_run(project: Path) -> None:
    (project / "tests" / "test_moody.py").write_text(FAILS_ONCE)
    (project / "tests" / "test_ill.py").write_text("def test_it(): assert False\n")
    status, said = run(project)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 1 passed" in said


def test_many_files_with_failures_are_no_accident(project: Path) -> None:
    for number in range(6):
        (project / "tests" / f"test_moody_{number}.py").write_text(FAILS_ONCE)
    status, said = run(project)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "more than 5" in said
