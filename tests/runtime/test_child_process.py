"""Children of `talkoo up`: restarted with a reason, and gone when their parent is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from talkoo_runtime.child_process import ChildProcess

SERVES = "import time; print('ready test', flush=True); time.sleep(600)"
FAILS = "import sys; sys.stderr.write('error: the disk is full\\n'); sys.exit(8)"


def child(code: str, tmp_path: Path, said: list[str]) -> ChildProcess:
    return ChildProcess("test", [sys.executable, "-c", code], tmp_path / "child.log", on_crash=said.append)


async def test_a_killed_child_is_started_again_and_says_why(tmp_path: Path, eventually: Any) -> None:
    said: list[str] = []
    kept = child(SERVES, tmp_path, said)
    kept.start()
    await asyncio.wait_for(kept.ready.wait(), 20)
    first = kept.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)

    async def again() -> bool:
        return kept.pid not in (None, first) and kept.ready.is_set()

    await eventually(again, "the child runs again")
    assert "was ended by SIGKILL" in said[0]
    await kept.stop()
    assert kept.pid is None


async def test_a_child_that_fails_says_its_own_reason_and_backs_off(tmp_path: Path, eventually: Any) -> None:
    said: list[str] = []
    kept = child(FAILS, tmp_path, said)
    kept.start()

    async def twice() -> bool:
        return len(said) >= 2

    await eventually(twice, "two crashes were told")
    await kept.stop()
    assert "ended with status 8: error: the disk is full" in said[0]
    assert said[0].endswith("in 0.3 s")
    assert said[1].endswith("in 0.6 s")


async def test_children_do_not_outlive_a_killed_parent(tmp_path: Path, eventually: Any) -> None:
    """The parent is killed with SIGKILL; its child asked the kernel to be told."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, os\n"
            "code = 'from talkoo_runtime.supervision import die_with_parent; import time; die_with_parent();"
            " print(1, flush=True); time.sleep(600)'\n"
            "p = subprocess.Popen([sys.executable, '-c', code], env={**os.environ, 'TALKOO_DIE_WITH_PARENT': '1'},"
            " stdout=subprocess.PIPE)\n"
            "p.stdout.readline(); print(p.pid, flush=True); p.wait()",
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    pid = int(await asyncio.to_thread(parent.stdout.readline))
    parent.kill()
    await asyncio.to_thread(parent.wait)
    parent.stdout.close()

    async def gone() -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    await eventually(gone, "the child has ended")
