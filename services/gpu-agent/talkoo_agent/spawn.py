"""Start a process with asyncio's pipes, but without passing through anybody's fork handlers (see exit_status.py)."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from talkoo_runtime.exit_status import exit_status


@dataclass(slots=True)
class Spawned:
    """A running process and its three pipes."""

    popen: subprocess.Popen[bytes]
    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader
    transports: tuple[asyncio.BaseTransport, ...]

    @property
    def returncode(self) -> int | None:
        return self.popen.poll()

    async def wait(self) -> int:
        """The exit status."""
        return await exit_status(self.popen)

    def kill(self) -> None:
        """End it at once, and bury it: that takes the kernel no time worth awaiting, and so cannot be cancelled."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()

    def close(self) -> None:
        """Let go of the pipes."""
        for transport in self.transports:
            transport.close()


async def spawn(arguments: Sequence[str], environment: Mapping[str, str] | None, line_limit: int) -> Spawned:
    """Called from the main thread: a child told to die with its parent dies with the thread that made it."""
    loop = asyncio.get_running_loop()
    popen = subprocess.Popen(  # noqa: ASYNC220  # vfork and exec take about a millisecond
        list(arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    stdout, stderr = asyncio.StreamReader(line_limit), asyncio.StreamReader(line_limit)
    out, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdout), popen.stdout)
    err, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stderr), popen.stderr)
    into, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, popen.stdin)
    stdin = asyncio.StreamWriter(into, protocol, None, loop)
    return Spawned(popen, stdin, stdout, stderr, (into, out, err))
