"""A child that speaks JSON lines: a trainer or a model server, from the agent's side."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

import msgspec

from talkoo_agent.spawn import Spawned, spawn
from talkoo_agent.trainer_messages import LINE_MAX_BYTES, line_of
from talkoo_core.errors import Failed, Unavailable
from talkoo_runtime.parent_death import bound_to_us

log = logging.getLogger(__name__)
T = TypeVar("T")

STOP_TIMEOUT_S = 3.0
KEPT_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "CUDA_VISIBLE_DEVICES",
    "VIRTUAL_ENV",
)
"""All of the agent's environment that the user's code gets to see."""


class LineChild(Generic[T]):
    """`module` is run with this Python; its stderr goes to `on_log` (which may be changed), line by line."""

    def __init__(
        self,
        module: str,
        decoder: msgspec.json.Decoder[T],
        on_log: Callable[[str], None],
        environment: dict[str, str] | None = None,
    ) -> None:
        self._module = module
        self._decoder = decoder
        self.on_log = on_log
        self._environment = environment or {}
        self._process: Spawned | None = None
        self._log_reader: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        threads = {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        }
        environment |= threads | bound_to_us() | self._environment
        self._process = await spawn([sys.executable, "-m", self._module], environment, LINE_MAX_BYTES)
        self._log_reader = asyncio.create_task(self._read_log(), name=f"log of {self._module}")

    async def send(self, message: msgspec.Struct) -> None:
        """Raises Unavailable (code `child_gone`) when the child has ended."""
        assert self._process is not None
        try:
            self._process.stdin.write(line_of(message))
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Unavailable(f"{self._module} has ended", code="child_gone") from error

    async def next_message(self) -> T | None:
        """None when the child closed its output. Raises Failed (code `internal`) on a line that is no message."""
        assert self._process is not None
        try:
            line = await self._process.stdout.readline()
            return self._decoder.decode(line) if line else None
        except (msgspec.MsgspecError, ValueError) as error:
            raise Failed(f"{self._module} said something unreadable: {error}", code="internal") from error

    async def messages(self) -> AsyncIterator[T]:
        """Until the child closes its output."""
        while (message := await self.next_message()) is not None:
            yield message

    async def wait(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, a bounded wait, SIGKILL. Safe to call twice or before `start`."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.popen.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                log.warning("%s did not stop in %.0f s and is killed", self._module, STOP_TIMEOUT_S)
            finally:
                process.kill()
        if self._log_reader is not None:
            await asyncio.gather(self._log_reader, return_exceptions=True)
        process.close()

    async def _read_log(self) -> None:
        assert self._process is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # a line over the limit: asyncio has dropped it
                self.on_log("(a line too long to keep)")
                continue
            if not line:
                return
            self.on_log(line.decode("utf-8", "replace").rstrip())
