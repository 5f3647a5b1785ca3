"""Say whether every dependency of pyproject.toml stands in its lock file with hashes and without a download address."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_NAME = re.compile(r"^[A-Za-z0-9._-]+")


def wanted(project: dict[str, object], extras: tuple[str, ...]) -> set[str]:
    table = project["project"]
    assert isinstance(table, dict)
    lines = [*table["dependencies"], *(line for extra in extras for line in table["optional-dependencies"][extra])]
    return {_normal(line) for line in lines}


def _normal(line: str) -> str:
    match = _NAME.match(line)
    assert match is not None, f"{line!r} is not a requirement"
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def problems(lock: Path, names: set[str]) -> list[str]:
    text = lock.read_text(encoding="utf-8")
    pinned = {_normal(line) for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))}
    found = [f"{lock.name}: {name} is missing; run `make lock`" for name in sorted(names - pinned)]
    if re.search(r"https?://", text):
        found.append(f"{lock.name}: names a download address; compile it with tools/lock.py")
    if text.count("--hash=") < len(pinned):
        found.append(f"{lock.name}: some entries have no hash; compile it with tools/lock.py")
    return found


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    everything = ("train", "demo")
    found = [
        *problems(ROOT / "requirements/slim.txt", wanted(project, ())),
        *problems(ROOT / "requirements/run.txt", wanted(project, everything)),
        *problems(ROOT / "requirements/dev.txt", wanted(project, everything)),
    ]
    print("\n".join(found) if found else "locks hold every dependency")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
