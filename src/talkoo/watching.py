"""Watching one task: the ledger's events and the nodes' progress in one stream, and what they add up to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.ledger.v1 import service_pb2, state_pb2

from talkoo_core.errors import TalkooError

if TYPE_CHECKING:
    from talkoo.client_async import AsyncClient

QUEUE_LENGTH = 256
PROGRESS_RETRY_S = 1.0
Item = service_pb2.BlockEvents | agent_pb2.ProgressUpdate | TalkooError
END_EVENTS = frozenset({"task_completed", "task_failed", "task_cancelled"})
ENDED = (state_pb2.TASK_PHASE_COMPLETED, state_pb2.TASK_PHASE_FAILED, state_pb2.TASK_PHASE_CANCELLED)


@dataclass(frozen=True, slots=True)
class Sight:
    """All that is known of a task at one moment; `news` are the ledger's events since the one before."""

    task: state_pb2.Task
    nodes: dict[str, str]
    """Names of the nodes by id."""
    news: tuple[service_pb2.Event, ...] = ()
    progress: agent_pb2.ProgressUpdate | None = None
    """The newest update of any node."""
    committed: int = 0
    audited: int = 0
    accepted: int = 0
    discarded: int = 0
    forgers: tuple[str, ...] = field(default=())
    """Ids of nodes that were slashed in this task."""

    @property
    def segments(self) -> int:
        """Of the whole task."""
        spec = self.task.spec
        return -(-spec.steps // max(spec.steps_per_segment, 1))

    @property
    def ended(self) -> bool:
        return self.task.phase in ENDED


async def watch(client: AsyncClient, task_id: str) -> AsyncIterator[Sight]:
    """Sights of a task from its creation to its end. A node or scheduler that is away only makes them fewer."""
    task = await client.ledger.task(task_id)
    sight = Sight(task=task, nodes={node.id: node.name for node in await client.nodes()})
    queue: asyncio.Queue[Item] = asyncio.Queue(QUEUE_LENGTH)
    readers = [
        asyncio.create_task(_read_events(client, task, queue)),
        asyncio.create_task(_read_progress(client, task_id, queue)),
    ]
    try:
        yield sight
        over = False
        while not over:  # the task may have ended long before its last events are read: all of them are told
            item = await queue.get()
            if isinstance(item, TalkooError):
                raise item
            if isinstance(item, agent_pb2.ProgressUpdate):
                sight = replace(sight, progress=_later(sight.progress, item), news=())
            else:
                news = tuple(event for event in item.events if concerns(event, task_id))
                if not news:
                    continue
                sight = take_news(sight, news, await client.ledger.task(task_id))
                if any(event.type == "task_placed" for event in news):
                    sight = replace(sight, nodes={node.id: node.name for node in await client.nodes()})
                over = any(event.type in END_EVENTS and event.subject == task_id for event in news)
            yield sight
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


def concerns(event: service_pb2.Event, task_id: str) -> bool:
    return event.subject == task_id or any(a.key == "task" and a.value == task_id for a in event.attributes)


def take_news(sight: Sight, news: tuple[service_pb2.Event, ...], task: state_pb2.Task) -> Sight:
    """The sight after some events; counts that the task itself holds are taken from it."""
    audited = sight.audited + sum(event.type == "audit_opened" for event in news)
    forgers = sight.forgers + tuple(event.subject for event in news if event.type == "slashed")
    progress = sight.progress
    if any(event.type in ("task_placed", "segment_discarded") for event in news):
        progress = None  # steps done for nothing are not shown as progress
    return replace(
        sight,
        task=task,
        news=news,
        progress=progress,
        committed=task.next_segment,
        audited=audited,
        accepted=task.accepted_segments,
        discarded=task.discarded_segments,
        forgers=tuple(dict.fromkeys(forgers)),
    )


def _later(known: agent_pb2.ProgressUpdate | None, new: agent_pb2.ProgressUpdate) -> agent_pb2.ProgressUpdate:
    """Updates of several nodes come in any order: the furthest of the newest attempt is shown."""
    if known is None or (new.attempt, new.step) >= (known.attempt, known.step):
        return new
    return known


async def _read_events(client: AsyncClient, task: state_pb2.Task, queue: asyncio.Queue[Item]) -> None:
    try:
        async for block in client.ledger.follow(max(task.created_height, 1)):
            await queue.put(block)
    except TalkooError as error:
        await queue.put(error)


async def _read_progress(client: AsyncClient, task_id: str, queue: asyncio.Queue[Item]) -> None:
    """Progress is for the eye: when its stream breaks it is opened again, and the ledger's events go on meanwhile."""
    while True:
        with contextlib.suppress(TalkooError):
            async for update in client.progress(task_id):
                await queue.put(update)
        await asyncio.sleep(PROGRESS_RETRY_S)
