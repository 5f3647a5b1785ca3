"""A trainer that waits: importing torch takes seconds, so one child has done it before a task comes."""

from __future__ import annotations

import asyncio
import logging

from talkoo_agent.child import LineChild
from talkoo_agent.trainer_messages import FromTrainer, from_trainer

log = logging.getLogger(__name__)

CALM_S = 4.0
"""A spare is made when nothing happened for so long: starting services and running shards go first."""


class Spare:
    """At most one waiting child. With `wanted` False there is never one, and `take` starts a child anew."""

    def __init__(self, environment: dict[str, str], wanted: bool) -> None:
        self._environment = environment
        self._wanted = wanted
        self._child: LineChild[FromTrainer] | None = None
        self._needed = asyncio.Event()

    async def take(self) -> LineChild[FromTrainer]:
        """A started trainer that has heard nothing yet; the caller owns it."""
        child, self._child = self._child, None
        if child is not None and child.alive:
            return child
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
                child = self._new()
                await child.start()
                self._child = child

    async def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop()

    def _new(self) -> LineChild[FromTrainer]:
        return LineChild[FromTrainer](
            "talkoo_agent.trainer", from_trainer, lambda line: log.info("trainer: %s", line), self._environment
        )
