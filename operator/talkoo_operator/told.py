"""The end of a process that works for ever: when it is told, or when its work ends by itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


async def until_told(work: Coroutine[Any, Any, None]) -> None:
    """Until SIGTERM or SIGINT comes, or `work` ends, whose error is raised."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    working, told = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if working.done():
        working.result()
    working.cancel()
    await asyncio.gather(working, told, return_exceptions=True)
