"""Which objects to look at: each at most once at a time, again when something came meanwhile, later after a failure."""

from __future__ import annotations

import asyncio
import enum
import logging
import random
import time
from collections.abc import Awaitable, Callable

from talkoo_operator.metrics import RECONCILE_SECONDS, RECONCILES, watch_queue

log = logging.getLogger(__name__)
Key = tuple[str, str]
"""Namespace (empty for what has none) and name."""

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 60.0
LEAST_PART = 0.5
"""Of a pause, by chance: objects that failed together, as by a refusal of many calls, are not tried again together."""
FAIR_EVERY = 8
"""Of so many looks one goes to the least urgent that waits, so that none waits for ever."""


class Lane(enum.IntEnum):
    """Why a key waits; the first is served first."""

    NEWS = 0
    """Something happened to what is known: the ledger said so, or its object was changed."""
    NEW = 1
    """An object that nobody has looked at yet. Many may come at once, and each takes long."""
    ROUTINE = 2
    """Nothing is known to have happened: its time has come, or all objects were listed."""


class WorkQueue:
    """Edges come in (`wake`), levels are looked at (`work`): however often a key is woken, one look is enough."""

    def __init__(
        self,
        work: Callable[[Key], Awaitable[float | None]],
        kind: str,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`work` answers after how many seconds the key should be looked at again, if nothing wakes it.

        `kind`: of the objects, for people. `chance`: from 0 to 1.
        """
        self._chance = chance
        self._work = work
        self._kind = kind
        watch_queue(kind, self.__len__)
        self._waiting: dict[Key, Lane] = {}
        self._lanes: dict[Lane, dict[Key, None]] = {lane: {} for lane in Lane}
        """The waiting ones again, in each lane in the order in which they came."""
        self._busy: set[Key] = set()
        self._again: dict[Key, Lane] = {}
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._taken = 0
        self._idle: dict[asyncio.Future[None], tuple[Lane, ...]] = {}
        """Workers that wait, and for what."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._busy)

    def wake(self, key: Key, lane: Lane = Lane.NEWS) -> None:
        """A key that waits already goes over to a more urgent lane, never to a less urgent one."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._busy:
            self._again[key] = min(lane, self._again.get(key, lane))
            return
        known = self._waiting.get(key)
        if known is not None:
            if known <= lane:
                return
            del self._lanes[known][key]
        self._waiting[key] = lane
        self._lanes[lane][key] = None
        self._rouse(lane)

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._failures.pop(key, None)
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    async def run(self, workers: int, for_known: int = 0) -> None:
        """For ever. `for_known` more workers take no new objects, so that nothing else waits until these are done."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._serve(tuple(Lane)))
            for _ in range(for_known):
                group.create_task(self._serve((Lane.NEWS, Lane.ROUTINE)))

    async def _serve(self, lanes: tuple[Lane, ...]) -> None:
        while True:
            key = await self._next(lanes)
            self._busy.add(key)
            try:
                again_s = await self._look(key)
            finally:
                self._busy.discard(key)
            lane = self._again.pop(key, None)
            if lane is not None:
                self.wake(key, lane)
            elif again_s is not None:
                later = asyncio.get_running_loop().call_later
                self._timers[key] = later(again_s, self.wake, key, Lane.ROUTINE)

    async def _next(self, lanes: tuple[Lane, ...]) -> Key:
        while True:
            order = reversed(lanes) if self._taken % FAIR_EVERY == FAIR_EVERY - 1 else lanes
            lane = next((each for each in order if self._lanes[each]), None)
            if lane is not None:
                break
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle[idle] = lanes
            try:
                await idle
            finally:
                self._idle.pop(idle, None)
        self._taken += 1
        key = next(iter(self._lanes[lane]))
        del self._lanes[lane][key], self._waiting[key]
        return key

    def _rouse(self, lane: Lane) -> None:
        """One idle worker that takes this lane."""
        for idle, lanes in self._idle.items():
            if lane in lanes and not idle.done():
                idle.set_result(None)
                return

    async def _look(self, key: Key) -> float | None:
        began = time.monotonic()
        try:
            again_s: float | None = await self._work(key)
        except Exception as error:  # one object that meets a fault must not end the work on all others
            count = self._failures.get(key, 0)
            self._failures[key] = count + 1
            RECONCILES.add(kind=self._kind, outcome="failed")
            longest = min(RETRY_FIRST_S * float(2**count), RETRY_MAX_S)
            pause = longest * (LEAST_PART + (1.0 - LEAST_PART) * self._chance())
            log.warning("%s/%s: %s; again in %.1f s", *key, error, pause, exc_info=not hasattr(error, "exit_status"))
            return pause
        finally:
            RECONCILE_SECONDS.observe(time.monotonic() - began, kind=self._kind)
        self._failures.pop(key, None)
        RECONCILES.add(kind=self._kind, outcome="ok")
        return again_s
