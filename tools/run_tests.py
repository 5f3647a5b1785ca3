"""Run all tests in several processes side by side; files with a failure once more, alone.

Many tests start processes that wait for each other, and a machine that is short of processor time for seconds can be
the only reason of a failure. So a few failures get one more chance, each with its whole file, and nothing beside it.
What passes only then is named in the last lines: it is a defect of the test or of the code, and stays one until it is
understood. What fails twice, or many files at once, fails the run. See docs/decisions/0016-once-more-alone.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAST_FAILED = ROOT / ".pytest_cache/v/cache/lastfailed"
MOST_FILES = 5
"""More with failures than this are no accident."""


def run(*arguments: str) -> int:
    return subprocess.call([sys.executable, "-m", "pytest", *arguments], cwd=ROOT)


def main(arguments: list[str]) -> int:
    status = run("--cache-clear", *arguments)
    if status != pytest.ExitCode.TESTS_FAILED or not LAST_FAILED.exists():
        return status
    failed = sorted(json.loads(LAST_FAILED.read_text(encoding="utf-8")))
    files = sorted({name.partition("::")[0] for name in failed})
    if len(files) > MOST_FILES:
        print(f"==> {len(files)} files have failures, more than {MOST_FILES}: they are not run again", flush=True)
        return status
    print(f"==> once more, alone: {', '.join(files)}", flush=True)
    again = run(*files)
    if again == pytest.ExitCode.OK:
        print("!!! PASSED ONLY ALONE; each has a defect that is to be found:", *failed, sep="\n    ", flush=True)
    return again


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
