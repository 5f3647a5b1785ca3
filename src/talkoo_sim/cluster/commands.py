"""Running a program to its end, with what it said in the error."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from talkoo_core.errors import Failed

TIMEOUT_S = 120.0
KEPT_OUTPUT_CHARACTERS = 4_000


def run(
    command: Sequence[str | Path],
    *,
    timeout_s: float = TIMEOUT_S,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What the program printed. Raises Failed with the end of its output when it fails or takes too long."""
    words = " ".join(Path(part).name if index == 0 else str(part) for index, part in enumerate(command))
    try:
        done = subprocess.run(
            [str(part) for part in command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"`{words}` took more than {timeout_s:.0f} s", code="command_timeout") from None
    if done.returncode != 0:
        said = (done.stderr + done.stdout)[-KEPT_OUTPUT_CHARACTERS:].strip()
        raise Failed(f"`{words}` ended with status {done.returncode}: {said}", code="command_failed")
    return done.stdout
