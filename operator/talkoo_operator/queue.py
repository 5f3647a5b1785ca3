"""Which objects to look at: each at most once at a time, again when something came meanwhile, later after a failure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from talkoo_operator.metrics import RECONCILE_SECONDS, RECONCILES, watch_queue

log = logging.getLogger(__name__)
Key = tuple[str, str]
"""Namespace (empty for what has none) and name."""

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 60.0


class WorkQueue:
    """Edges come in (`wake`), levels are looked at (`work`): however often a key is woken, one look is enough."""

    def __init__(self, work: Callable[[Key], Awaitable[float | None]], kind: str) -> None:
        """`work` answers after how many seconds the key should be looked at again, if nothing wakes it.

        `kind`: of the objects, for people.
        """
        self._work = work
        self._kind = kind
        watch_queue(kind, self.__len__)
        self._waiting: dict[Key, None] = {}
        self._busy: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._busy)

    def wake(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._busy:
            self._again.add(key)
            return
        self._waiting[key] = None
        self._news.set()

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._failures.pop(key, None)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    async def run(self, workers: int) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            while not self._waiting:
                self._news.clear()
                await self._news.wait()
            key = next(iter(self._waiting))
            del self._waiting[key]
            self._busy.add(key)
            try:
                again_s = await self._look(key)
            finally:
                self._busy.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.wake(key)
            elif again_s is not None:
                self._timers[key] = asyncio.get_running_loop().call_later(again_s, self.wake, key)

    async def _look(self, key: Key) -> float | None:
        began = time.monotonic()
        try:
            again_s: float | None = await self._work(key)
        except Exception as error:  # one object that meets a fault must not end the work on all others
            count = self._failures.get(key, 0)
            self._failures[key] = count + 1
            RECONCILES.add(kind=self._kind, outcome="failed")
            pause = min(RETRY_FIRST_S * float(2**count), RETRY_MAX_S)
            log.warning("%s/%s: %s; again in %.1f s", *key, error, pause, exc_info=not hasattr(error, "exit_status"))
            return pause
        finally:
            RECONCILE_SECONDS.observe(time.monotonic() - began, kind=self._kind)
        self._failures.pop(key, None)
        RECONCILES.add(kind=self._kind, outcome="ok")
        return again_s
