"""Searches of the index, in threads, a few at once: consensus goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from talkoo_core.errors import Exhausted
from talkoo_ledger.event_index import EventSearch, Place
from talkoo_ledger.event_query import parse_query

A = TypeVar("A")
R = TypeVar("R")

AT_ONCE = 2
WAITING_MAX = 16


class Searches:
    """Raises InvalidInput (`bad_query`), Exhausted (`search_too_wide`, `too_many_searches`)."""

    def __init__(self, index: EventSearch) -> None:
        self._index = index
        self._room = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def transactions(self, query: str) -> list[Place]:
        return await self._run(self._index.transactions, parse_query(query))

    async def blocks(self, query: str) -> list[int]:
        return await self._run(self._index.blocks, parse_query(query))

    async def height_of(self, block_hash: bytes) -> int | None:
        return await self._run(self._index.height_of, block_hash)

    async def _run(self, search: Callable[[A], R], argument: A) -> R:
        if self._waiting >= WAITING_MAX:
            raise Exhausted("too many searches wait already; try again in a moment", code="too_many_searches")
        self._waiting += 1
        try:
            async with self._room:
                return await asyncio.to_thread(search, argument)
        finally:
            self._waiting -= 1
