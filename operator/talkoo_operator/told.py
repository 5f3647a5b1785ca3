"""The end of a process that works for ever: when it is told, or when its work ends by itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

from talkoo_runtime.supervision import leave_in_time


class Told:
    """`name`: of the process, for its log."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told = asyncio.Event()

    def hear(self) -> None:
        """Take SIGTERM and SIGINT; again where a library has taken them for itself."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._told.set)

    async def until(self, work: Coroutine[Any, Any, None]) -> None:
        """Until told, or `work` ends, whose error is raised. What hangs at its end is left as it is after seconds."""
        self.hear()
        working, told = asyncio.create_task(work), asyncio.create_task(self._told.wait())
        await asyncio.wait({working, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if working.done():
            working.result()
        leave_in_time(self._name, 0)
        working.cancel()
        await asyncio.gather(working, told, return_exceptions=True)
