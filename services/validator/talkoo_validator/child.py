"""The service's end of the re-computing child: started when there is work, kept warm, replaced when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from talkoo_core.errors import Exhausted
from talkoo_validator.orders import (
    LINE_MAX_BYTES,
    Failed,
    FromChild,
    Ready,
    Recompute,
    Recomputed,
    Stop,
    from_child,
    line_of,
)

log = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
"""torch alone may take long to load from a cold disk."""
STOP_TIMEOUT_S = 3.0
MAX_LOG_BYTES = 8 * 1024 * 1024


class _Process:
    """A child with pipes that asyncio reads.

    Started by `subprocess`, which uses vfork: nothing of this process's threads and fork handlers runs before exec.
    uvloop's own way is a fork of the whole process, gRPC's threads and all.
    """

    def __init__(self, process: subprocess.Popen[bytes], stdin: asyncio.StreamWriter, stdout: asyncio.StreamReader):
        self.stdin, self.stdout, self.pid = stdin, stdout, process.pid
        self._process = process

    @classmethod
    async def start(cls, arguments: list[str], errors: BinaryIO) -> _Process:
        process = await asyncio.to_thread(_open, arguments, errors)
        loop = asyncio.get_running_loop()
        stdout = asyncio.StreamReader(limit=LINE_MAX_BYTES, loop=loop)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdout, loop=loop), process.stdout)
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop)  # brings the flow control
        transport, _ = await loop.connect_write_pipe(lambda: protocol, process.stdin)
        return cls(process, asyncio.StreamWriter(transport, protocol, None, loop), stdout)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def wait(self) -> bool:
        """Whether it ended within `STOP_TIMEOUT_S`."""
        try:
            await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        self.stdin.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class RecomputeChild:
    """One child, one segment at a time; the caller waits in line. `refusal` says why there can be none."""

    def __init__(self, log_path: Path, timeout_s: float) -> None:
        self.refusal = ""
        self.hardware_class = ""
        self._log_path = log_path
        self._timeout_s = timeout_s
        self._process: _Process | None = None
        self._turn = asyncio.Lock()
        self._computing: tuple[str, int, int] | None = None

    async def warm_up(self) -> None:
        """Load torch now, so that the first audit need not wait for it."""
        async with self._turn:
            await self._ensure()

    async def compute(self, order: Recompute) -> Recomputed | Failed:
        """Compute one segment again. Failures of the child itself have the kinds `no_child`, `died` and `timeout`."""
        async with self._turn:
            process = await self._ensure()
            if process is None:
                return Failed(kind="no_child", message=self.refusal or "the re-computing child does not start")
            self._computing = order.task, order.attempt, order.segment
            try:
                return await self._ask(process, order)
            finally:
                self._computing = None

    def stop_if_computing(self, key: tuple[str, int, int]) -> None:
        """Nobody needs this segment's verdict any more: end the work on it, if it is under way."""
        process = self._process
        if self._computing == key and process is not None:
            process.stdin.write(line_of(Stop()))

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.stdin.close()
        await process.wait()
        await self._end(process)

    async def _ask(self, process: _Process, order: Recompute) -> Recomputed | Failed:
        line = line_of(order)
        if len(line) > LINE_MAX_BYTES:
            raise Exhausted(f"the order for a segment has {len(line)} bytes; {LINE_MAX_BYTES} is the most")
        try:
            process.stdin.write(line)
            await process.stdin.drain()
            answer = await asyncio.wait_for(self._read(process), self._timeout_s)
        except TimeoutError:
            await self._end(process)
            return Failed(kind="timeout", message=f"the re-computation took more than {self._timeout_s:.0f} s")
        except (ConnectionError, asyncio.CancelledError) as error:
            await self._end(process)
            if isinstance(error, asyncio.CancelledError):
                raise
            answer = None
        if isinstance(answer, Recomputed | Failed):
            return answer
        await self._end(process)
        return Failed(kind="died", message=f"the re-computing child ended; {self._log_path} says why")

    async def _ensure(self) -> _Process | None:
        if self._process is not None and self._process.alive:
            return self._process
        process = await self._spawn()
        try:
            answer = await asyncio.wait_for(self._read(process), START_TIMEOUT_S)
        except (TimeoutError, asyncio.CancelledError) as error:
            await self._end(process)
            if isinstance(error, asyncio.CancelledError):
                raise
            answer = None
        if isinstance(answer, Ready):
            self.refusal, self.hardware_class, self._process = "", answer.hardware_class, process
            log.info("the re-computing child is warm: %s", answer.hardware_class)
            return process
        await self._end(process)
        told = answer.message if isinstance(answer, Failed) else f"{self._log_path} says why"
        self.refusal = f"no segment can be re-computed here: {told}"
        log.warning("%s", self.refusal)
        return None

    async def _spawn(self) -> _Process:
        with _log_file(self._log_path) as file:
            return await _Process.start([sys.executable, "-m", "talkoo_validator.recompute"], file)

    async def _read(self, process: _Process) -> FromChild | None:
        """The child's next message; None when it has ended or speaks nonsense."""
        try:
            line = await process.stdout.readline()
            return from_child.decode(line) if line else None
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("the re-computing child wrote a line that cannot be read: %s", error)
            return None

    async def _end(self, process: _Process) -> None:
        """Kill the child and the fork that may compute under it: they are a session of their own."""
        if process is self._process:
            self._process = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if not await process.wait():
            log.warning("the re-computing child %d does not end, though it was killed", process.pid)
        process.close()


def _open(arguments: list[str], errors: BinaryIO) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
    )


def _log_file(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".old.log"))
    return path.open("ab")
