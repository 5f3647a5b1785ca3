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
import pytest

from talkoo_core.errors import NotFound
from talkoo_runtime import child_log
from talkoo_runtime.child_log import ChildLog
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


async def test_a_line_without_an_end_does_not_end_the_watch(tmp_path: Path) -> None:
    kept = child("import sys; sys.stdout.write('x' * 3_000_000 + chr(10)); " + SERVES, tmp_path, [])
    kept.start()
    await asyncio.wait_for(kept.ready.wait(), 20)
    await kept.stop()
    assert kept.pid is None
    assert (tmp_path / "child.log").stat().st_size > 3_000_000


async def test_a_log_on_a_full_disk_blocks_no_child(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chatty = "for _ in range(20_000): print('y' * 50)\n"
    kept = ChildProcess("test", [sys.executable, "-c", chatty + SERVES], Path("/dev/full"))
    kept.start()
    await asyncio.wait_for(kept.ready.wait(), 20)
    await kept.stop()
    assert [r.message for r in caplog.records] == [
        "/dev/full cannot be written (No space left on device); lines are lost until it can"
    ]


async def test_a_program_that_is_not_there_is_told_and_tried_again(tmp_path: Path, eventually: Any) -> None:
    said: list[str] = []
    kept = ChildProcess("test", ["/no/such/program"], tmp_path / "child.log", on_crash=said.append)
    kept.start()

    async def twice() -> bool:
        return len(said) >= 2

    await eventually(twice, "two failed starts were told")
    await kept.stop()
    assert "cannot be started: No such file or directory: /no/such/program" in said[0]


async def test_what_a_child_says_while_it_stops_is_logged(tmp_path: Path) -> None:
    """More than a pipe holds: a child nobody reads would never get to its end."""
    code = (
        "import signal, sys, time\n"
        "def stop(*_):\n"
        "    for _ in range(20_000): print('y' * 50)\n"
        "    print('last words'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
    )
    kept = child(code + SERVES, tmp_path, [])
    kept.start()
    await asyncio.wait_for(kept.ready.wait(), 20)
    await asyncio.wait_for(kept.stop(), 5)
    assert (tmp_path / "child.log").read_text().endswith("last words\n")


async def test_a_grandchild_that_holds_the_output_hides_no_crash(tmp_path: Path, eventually: Any) -> None:
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('ready', p.pid, flush=True); sys.exit(3)"
    )
    said: list[str] = []
    kept = child(code, tmp_path, said)
    kept.start()

    async def told() -> bool:
        return bool(said)

    try:
        await eventually(told, "the crash was told although the pipe is still open")
        assert "ended with status 3" in said[0]
    finally:
        await kept.stop()
        for line in (tmp_path / "child.log").read_text().splitlines():
            os.kill(int(line.split()[1]), signal.SIGKILL)


async def test_a_child_that_ignores_the_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talkoo_runtime.child_process.STOP_TIMEOUT_S", 0.3)
    kept = child("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SERVES, tmp_path, [])
    kept.start()
    await asyncio.wait_for(kept.ready.wait(), 20)
    await asyncio.wait_for(kept.stop(), 5)
    assert kept.pid is None


def test_a_child_s_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_log, "MAX_LOG_BYTES", 100)
    kept = ChildLog(tmp_path / "child.log")
    for _ in range(55):
        kept.write(b"0123456789\n")
    kept.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["child.log", "child.old.log"]
    assert all(p.stat().st_size <= 111 for p in tmp_path.iterdir())


async def test_a_program_in_another_language_does_not_outlive_a_killed_parent(tmp_path: Path, eventually: Any) -> None:
    """etcd cannot ask the kernel itself: it is asked for it before it begins."""
    code = (
        "import asyncio, pathlib, shutil\n"
        "from talkoo_runtime.child_process import ChildProcess\n"
        "async def main():\n"
        f"    kept = ChildProcess('sleep', [shutil.which('sleep'), '600'], pathlib.Path({str(tmp_path / 'log')!r}))\n"
        "    kept.start()\n"
        "    while kept.pid is None or b'-c' in pathlib.Path(f'/proc/{kept.pid}/cmdline').read_bytes():\n"
        "        await asyncio.sleep(0.02)\n"
        "    print(kept.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(asyncio.to_thread(parent.stdout.readline), 20))
    parent.kill()
    await asyncio.to_thread(parent.wait)
    parent.stdout.close()

    async def gone() -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    await eventually(gone, "the program has ended")


async def test_children_do_not_outlive_a_killed_parent(tmp_path: Path, eventually: Any) -> None:
    """The parent is killed with SIGKILL; its child asked the kernel to be told."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, os\n"
            "code = 'from talkoo_runtime.parent_death import die_with_parent; import time; die_with_parent();"
            " print(1, flush=True); time.sleep(600)'\n"
            "from talkoo_runtime.parent_death import bound_to_us\n"
            "env = os.environ | bound_to_us()\n"
            "p = subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE)\n"
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


def test_a_child_of_process_1_of_a_container_is_no_orphan(leave_out: Any) -> None:
    """In a container a service is process 1; its children live, and say so."""
    new_pids = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*new_pids, "true"], capture_output=True, check=False).returncode != 0:
        leave_out(NotFound("this kernel gives us no process namespace of our own"))
    child = "from talkoo_runtime.parent_death import die_with_parent; die_with_parent(); print('alive')"
    service = (
        "import os, subprocess, sys\n"
        "from talkoo_runtime.parent_death import bound_to_us\n"
        "assert os.getpid() == 1\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], env=os.environ | bound_to_us(), check=True)\n"
    )
    said = subprocess.run([*new_pids, sys.executable, "-c", service], capture_output=True, text=True, check=False)
    assert said.stdout == "alive\n", said.stderr
