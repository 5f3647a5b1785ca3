"""Compile requirements/*.txt from pyproject.toml: versions and hashes, no download addresses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES: dict[str, list[str]] = {
    "slim.txt": [],
    "run.txt": ["--extra", "all", "--group", "build"],
    "dev.txt": ["--extra", "all", "--group", "dev"],
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
    command = [str(uv), "pip", "compile", "pyproject.toml", *FILES[name], *COMMON, *constraint, "-o", str(out)]
    if upgrade:
        command.append("--upgrade")
    subprocess.run(command, check=True, cwd=ROOT)


def main() -> int:
    for name in ("dev.txt", "run.txt", "slim.txt"):
        print(f"compiling requirements/{name}")
        compile_lock(name, ROOT / "requirements" / name, upgrade=name == "dev.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
