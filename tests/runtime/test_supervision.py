"""A service as a process: it stops when told, even while it starts, and says in one line why it could not go on."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from talkoo_core.errors import Unavailable
from talkoo_runtime import supervision
from talkoo_runtime.supervision import OUR_FAULT, Background

SERVICE = """
import asyncio, sys
from talkoo_core.errors import Unavailable
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_runtime.supervision import run_service

async def crash():
    raise ValueError("a bug")

async def unreachable():
    raise Unavailable("the ledger is away; start it")

async def serve(settings, background):
    async def stop():
        {stop}
    print("starting", flush=True)
    {serve}
    return stop

sys.exit(run_service("test", ServiceSettings, serve))
"""


def start(folder: Path, serve: str = "pass", stop: str = "pass", **settings: str) -> subprocess.Popen[str]:
    values = {
        "federation": "town",
        "organization": "north",
        "name": "north-test",
        "listen": "127.0.0.1:1",
        "state_dir": str(folder / "state"),
        "certificate": "/none",
        "private_key": "/none",
        "trust_bundle": "/none",
    } | settings
    (folder / "settings.toml").write_text("".join(f'{key} = "{value}"\n' for key, value in values.items()))
    code = SERVICE.format(serve=serve, stop=stop)
    return subprocess.Popen(
        [sys.executable, "-c", code, "--settings", str(folder / "settings.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told_to_stop(process: subprocess.Popen[str], after: str, number: int) -> tuple[int, str, float]:
    """Send a signal once the line appears; returns the status, what it said, and the seconds it took."""
    assert process.stdout is not None
    while not process.stdout.readline().startswith(after):
        assert process.poll() is None, process.communicate()
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    return process.returncode, said, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_stops_in_order_when_told(tmp_path: Path, number: int) -> None:
    stop = "sys.stderr.write('stopped in order')"
    status, said, _ = told_to_stop(start(tmp_path, stop=stop), "ready test north-test 127.0.0.1:1", number)
    assert (status, said) == (0, "stopped in order")


def test_a_service_that_still_starts_stops_too(tmp_path: Path) -> None:
    status, said, took_s = told_to_stop(start(tmp_path, "await asyncio.sleep(600)"), "starting", signal.SIGTERM)
    assert (status, said) == (0, "")
    assert took_s < 3


@pytest.mark.parametrize("hung", ["await asyncio.sleep(600)", "await asyncio.to_thread(__import__('time').sleep, 600)"])
def test_a_stop_that_hangs_is_cut_short_and_counts_as_a_failure(tmp_path: Path, hung: str) -> None:
    status, said, took_s = told_to_stop(start(tmp_path, stop=hung), "ready", signal.SIGTERM)
    assert status == OUR_FAULT
    assert "north-test did not stop in 5 s" in said
    assert took_s < 10


@pytest.mark.parametrize(
    ("serve", "status", "last_line"),
    [
        ("await unreachable()", 7, "error: the ledger is away; start it"),
        ("await crash()", OUR_FAULT, "error: ValueError: a bug"),
        ("background.start('work', crash()); await asyncio.sleep(600)", OUR_FAULT, "error: ValueError: a bug"),
        ("background.start('work', unreachable())", 7, "error: the ledger is away; start it"),
    ],
)
def test_why_a_service_ends_is_its_last_line(tmp_path: Path, serve: str, status: int, last_line: str) -> None:
    process = start(tmp_path, serve)
    _, said = process.communicate(timeout=20)
    assert said.rstrip().splitlines()[-1] == last_line
    assert process.returncode == status


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = start(tmp_path, state_dir=str(tmp_path / "file" / "state"))
    _, said = process.communicate(timeout=20)
    assert said == (
        f"error: state_dir {tmp_path}/file/state cannot be made: Not a directory; name a folder this user may write\n"
    )
    assert process.returncode == 2


async def test_work_that_may_be_restarted_is_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, eventually: Any
) -> None:
    monkeypatch.setattr(supervision, "RESTART_FIRST_S", 0.01)
    runs: list[None] = []

    async def fails_twice() -> None:
        runs.append(None)
        if len(runs) < 3:
            raise Unavailable("away")

    background = Background()
    task = background.start_restarting("following", fails_twice)
    await asyncio.wait_for(task, 10)
    assert len(runs) == 3
    assert [r.message for r in caplog.records] == [
        "following failed (away); again in 0.0 s",
        "following failed (away); again in 0.0 s",
    ]
    await background.stop()


async def test_a_bug_in_restartable_work_ends_the_service() -> None:
    async def bug() -> None:
        raise KeyError("x")

    background = Background()
    background.start_restarting("work", bug)
    with pytest.raises(KeyError):
        await asyncio.wait_for(background.crashed(), 10)
    await background.stop()
