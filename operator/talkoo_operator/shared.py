"""Reads that several ask for at the same time are made once, and nobody gets what was read before it asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Shared:
    """At most one read of each name is on its way; who asks meanwhile waits for the next one, together."""

    def __init__(self) -> None:
        self._going: dict[Hashable, asyncio.Future[Any]] = {}
        self._next: dict[Hashable, asyncio.Future[Any]] = {}

    async def read(self, name: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` gives or raises, called by whoever asked first. All get the same object: nobody changes it."""
        mine = self._next.get(name)
        if mine is None:
            mine = self._next[name] = asyncio.ensure_future(self._after(self._going.get(name), name, call))
            mine.add_done_callback(_seen)
        answer: T = await asyncio.shield(mine)
        return answer

    async def _after(self, before: asyncio.Future[Any] | None, name: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        if before is not None:
            await asyncio.wait([before])
        mine = self._going[name] = self._next.pop(name)
        try:
            return await call()
        finally:
            if self._going.get(name) is mine:
                del self._going[name]


def _seen(future: asyncio.Future[Any]) -> None:
    """Where all who asked were cancelled, nobody else looks at what went wrong."""
    if not future.cancelled():
        future.exception()
