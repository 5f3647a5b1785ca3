"""A child that is kept alive: started, watched, started again after a crash, stopped in order.

Nothing a child does may end the watch over it: a line without an end, a log on a full disk, a program that is not
there. Its output is always read, so it never blocks on a full pipe, and the wait for its end never depends on the pipe.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from talkoo_runtime.child_log import ChildLog
from talkoo_runtime.exit_status import exit_status
from talkoo_runtime.parent_death import bound_to_us

log = logging.getLogger(__name__)
FIRST_BACK_OFF_S = 0.3
MAX_BACK_OFF_S = 10.0
STEADY_S = 30.0
"""A child that lived so long begins with the first back-off again."""
STOP_TIMEOUT_S = 6.0
KILL_TIMEOUT_S = 2.0
DRAIN_S = 1.0
"""How long the output of a dead child is still read: a grandchild may hold the pipe open for ever."""
KEPT_LINES = 20
CHUNK_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 16
"""A longer line counts as several."""

_LAUNCH = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) or sys.exit('the parent has ended'); os.execv(sys.argv[2], sys.argv[2:])"
)
"""Asks Linux to end the process with its parent (PR_SET_PDEATHSIG, kept by exec), then becomes the program."""


class ChildProcess:
    """One child with its log file. `on_crash` gets a sentence; `ready` is set at its line `ready …` on stdout.

    A Python child is asked by `parent_death` to end with us; for any other
    program that is arranged before it begins.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log_path: Path,
        *,
        environment: Mapping[str, str] | None = None,
        on_crash: Callable[[str], None] | None = None,
        ready_when: str = "ready ",
    ) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self.restarts = 0
        self._arguments = _bound_to_us(arguments)
        self._log = ChildLog(log_path)
        self._environment = {
            **os.environ,
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            **bound_to_us(),
            **(environment or {}),
        }
        self._on_crash = on_crash or (lambda sentence: log.warning("%s", sentence))
        self._ready_when = ready_when
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        self._stopping.clear()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def stop(self) -> None:
        """SIGTERM, a bounded wait, SIGKILL to it and what it started. What it says while it stops is still logged."""
        self._stopping.set()
        if self._keeper is None:
            return
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait({self._keeper}, timeout=STOP_TIMEOUT_S)
        if not done:
            log.warning("%s did not stop in %.0f s and is killed", self.name, STOP_TIMEOUT_S)
            self._signal(signal.SIGKILL)
            await asyncio.wait({self._keeper}, timeout=KILL_TIMEOUT_S)
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)

    def _signal(self, number: signal.Signals) -> None:
        """To the child; SIGKILL to its whole session, for nobody would stop its own children then."""
        pid = self.pid
        if pid is None:
            return
        try:
            if number is signal.SIGKILL:
                os.killpg(pid, number)
            else:
                os.kill(pid, number)
        except ProcessLookupError:
            log.debug("%s had already ended", self.name)

    async def _keep(self) -> None:
        back_off = FIRST_BACK_OFF_S
        now = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            began = now()
            ending = await self._run_once()
            self.ready.clear()
            if self._stopping.is_set():
                return
            self.restarts += 1
            back_off = FIRST_BACK_OFF_S if now() - began > STEADY_S else back_off
            self._on_crash(f"{self.name} {ending}{self._why()}; started again in {back_off:.1f} s")
            try:
                await asyncio.wait_for(self._stopping.wait(), back_off)
            except TimeoutError:
                back_off = min(back_off * 2, MAX_BACK_OFF_S)

    async def _run_once(self) -> str:
        """Start it and wait until it has ended; returns how it ended, in words."""
        self._last_lines.clear()
        output, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220  # vfork and exec; exit_status.py says why not asyncio's
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            os.close(output)
            return f"cannot be started: {error.strerror}: {self._arguments[0]}"
        finally:
            os.close(theirs)
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        copying = asyncio.create_task(self._copy_output(output), name=f"output of {self.name}")
        try:
            status = await exit_status(self._process)
            await asyncio.wait({copying}, timeout=DRAIN_S)
        finally:
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
        return _ending(status)

    async def _copy_output(self, descriptor: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
        )
        rest = b""
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                self._log.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._take_line(line)
        finally:
            if rest:
                self._take_line(rest)
            self._log.close()
            transport.close()

    def _take_line(self, raw: bytes) -> None:
        line = raw[:MAX_LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
        self._last_lines.append(line)
        if line.startswith(self._ready_when) or (self._ready_when != "ready " and self._ready_when in line):
            self.ready.set()

    def _why(self) -> str:
        telling = [line for line in self._last_lines if line.strip()]
        errors = [line for line in telling if "error" in line.lower()]
        return f": {(errors or telling)[-1].strip()}" if telling else ""


def _bound_to_us(arguments: Sequence[str]) -> list[str]:
    if arguments[0] == sys.executable or not sys.platform.startswith("linux") or not Path(arguments[0]).is_file():
        return list(arguments)
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *arguments]


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
