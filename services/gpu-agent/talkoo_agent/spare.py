"""A trainer that waits: importing torch takes seconds, so one child has done it before a task comes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from talkoo_agent.child import LineChild
from talkoo_agent.speed import alone
from talkoo_agent.trainer_messages import FromTrainer, Warm, Warmed, from_trainer

log = logging.getLogger(__name__)

CALM_S = 4.0
"""A spare is made when nothing happened for so long: starting services and running shards go first."""
WARM_TIMEOUT_S = 60.0
"""A spare that has not loaded torch by then is not waited for."""


class Spare:
    """At most one waiting child. With `wanted` False there is never one, and `take` starts a child anew.

    Nodes of one machine load their spares one after the other, by a lock: a task that comes meanwhile finds some ready,
    instead of all half loaded.
    """

    def __init__(self, environment: dict[str, str], wanted: bool, lock: Path) -> None:
        self._lock = lock
        self._warming: asyncio.Task[FromTrainer | None] | None = None
        self._environment = environment
        self._wanted = wanted
        self._child: LineChild[FromTrainer] | None = None
        self._needed = asyncio.Event()

    async def take(self) -> LineChild[FromTrainer]:
        """A started trainer that has heard nothing yet; the caller owns it."""
        child, self._child = self._child, None
        if child is not None:
            try:
                if child.alive and await self._is_warm():
                    return child
            except BaseException:
                await child.stop()
                raise
            await child.stop()
        child = self._new()
        await child.start()
        return child

    def refill(self) -> None:
        """The node has registered, or a shard has ended: the next task may find a spare."""
        self._needed.set()

    async def keep(self) -> None:
        """Background work of the service."""
        while self._wanted:
            await self._needed.wait()
            await asyncio.sleep(CALM_S)
            self._needed.clear()
            if self._child is None or not self._child.alive:
                async with alone(self._lock):
                    await self._load()

    async def _load(self) -> None:
        child = self._new()
        await child.start()
        self._child, self._warming = child, asyncio.create_task(_warm(child), name="warm the spare trainer")
        await self._is_warm()

    async def _is_warm(self) -> bool:
        """Wait for the child's answer; both who loads it and who takes it may wait."""
        assert self._warming is not None
        done, _ = await asyncio.wait({self._warming}, timeout=WARM_TIMEOUT_S)
        return any(
            not task.cancelled() and task.exception() is None and isinstance(task.result(), Warmed) for task in done
        )

    async def stop(self) -> None:
        child, self._child = self._child, None
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        if child is not None:
            await child.stop()

    def _new(self) -> LineChild[FromTrainer]:
        return LineChild[FromTrainer](
            "talkoo_agent.trainer", from_trainer, lambda line: log.info("trainer: %s", line), self._environment
        )


async def _warm(child: LineChild[FromTrainer]) -> FromTrainer | None:
    await child.send(Warm())
    return await child.next_message()
