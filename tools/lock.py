"""Compile requirements/*.txt from pyproject.toml: versions and hashes, no download addresses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES: dict[str, list[str]] = {
    "slim.txt": ["pyproject.toml"],
    "run.txt": ["pyproject.toml", "--extra", "all", "--group", "build"],
    "dev.txt": ["pyproject.toml", "--extra", "all", "--group", "dev"],
    "train.txt": ["pyproject.toml", "--extra", "train"],
    "build.txt": ["--group", "build"],
    "storage.txt": ["--group", "storage"],
    "sbom.txt": ["--group", "sbom"],
}
COMMON = [
    "--universal",
    "--python-version",
    "3.11",
    "--generate-hashes",
    "--no-header",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-annotate",
    "--quiet",
]


def compile_lock(name: str, out: Path, *, upgrade: bool) -> None:
    """Write one lock; without `upgrade` the versions already in `out` are kept where they still fit."""
    uv = Path(sys.executable).parent / "uv"
    constraint = [] if name == "dev.txt" else ["--constraint", str(ROOT / "requirements" / "dev.txt")]
    command = [str(uv), "pip", "compile", *FILES[name], *COMMON, *constraint, "-o", str(out)]
    if upgrade:
        command.append("--upgrade")
    subprocess.run(command, check=True, cwd=ROOT)


def main() -> int:
    for name in ("dev.txt", *(name for name in FILES if name != "dev.txt")):
        print(f"compiling requirements/{name}")
        compile_lock(name, ROOT / "requirements" / name, upgrade=name == "dev.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
