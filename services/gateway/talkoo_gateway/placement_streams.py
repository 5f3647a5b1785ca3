"""Logs and progress of a task, merged over the nodes it is placed on, across re-placements.

One reader per node puts into one bounded queue; a slow client slows the readers, and through gRPC's flow control the
agents, instead of filling memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from talkoo_api.ledger.v1 import state_pb2

from talkoo_core.errors import TalkooError, Unavailable
from talkoo_runtime.ledger_client import LedgerClient

log = logging.getLogger(__name__)

QUEUE_LENGTH = 256
MAX_NODES = 256
LINGER_S = 3.0
"""After the end of a task its nodes have so long to send their last lines."""
REOPEN_FIRST_S = 0.5
REOPEN_MAX_S = 5.0
OUTBOUND_ONLY = "outbound_only"
"""Code of an error that trying again does not cure: the node only dials out."""
ENDED = (state_pb2.TASK_PHASE_COMPLETED, state_pb2.TASK_PHASE_FAILED, state_pb2.TASK_PHASE_CANCELLED)


class Timed(Protocol):
    @property
    def time_ns(self) -> int: ...


T = TypeVar("T", bound=Timed)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A node cannot be reached. Said once; the reader goes on trying while the task is placed there."""

    node: state_pb2.Node
    error: TalkooError


@dataclass(frozen=True, slots=True)
class _End:
    node_id: str


@dataclass(frozen=True, slots=True)
class _Changed:
    """Something happened to the task on the ledger."""


class PlacementStream(Generic[T]):
    """Reads `open_stream(node)` of every node of a task. Items come in the order in which they arrive.

    `say` makes an item of a trouble, or None where a reader need not know.
    """

    def __init__(
        self,
        ledger: LedgerClient,
        task_id: str,
        open_stream: Callable[[state_pb2.Node], AsyncIterator[T]],
        say: Callable[[Trouble], T | None],
    ) -> None:
        self._ledger = ledger
        self._task_id = task_id
        self._open = open_stream
        self._say = say
        self._queue: asyncio.Queue[T | Trouble | _End | _Changed | TalkooError] = asyncio.Queue(QUEUE_LENGTH)
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._events: asyncio.Task[None] | None = None
        self._seen_ns: dict[str, int] = {}
        self._placed: frozenset[str] = frozenset()
        """Nodes that are read again when their stream breaks."""
        self._attempt = -1
        self._over = asyncio.Event()

    async def once(self, nodes: Sequence[state_pb2.Node]) -> AsyncIterator[T]:
        """What the nodes have now; ends when each has sent it all."""
        try:
            for node in nodes:
                self._start(node)
            while self._readers or not self._queue.empty():
                async for item in self._spoken(await self._queue.get()):
                    yield item
        finally:
            await self._stop()

    async def follow(self) -> AsyncIterator[T]:
        """What the nodes have and what comes, until the task has ended. A new placement's nodes are joined."""
        height = (await self._ledger.status()).height
        task = await self._ledger.task(self._task_id)
        self._events = asyncio.create_task(self._read_events(height + 1))
        now = asyncio.get_running_loop().time
        deadline: float | None = None
        try:
            while True:
                await self._join(task)
                if task.phase in ENDED:
                    deadline = deadline or now() + LINGER_S
                    self._placed = frozenset()
                    self._over.set()
                    if not self._readers and self._queue.empty():
                        return
                try:
                    async with asyncio.timeout(None if deadline is None else deadline - now()):
                        item = await self._queue.get()
                except TimeoutError:
                    return
                if isinstance(item, _Changed):
                    task = await self._ledger.task(self._task_id)
                async for spoken in self._spoken(item):
                    yield spoken
        finally:
            await self._stop()

    async def _spoken(self, item: T | Trouble | _End | _Changed | TalkooError) -> AsyncIterator[T]:
        """What a reader is told of one entry of the queue."""
        if isinstance(item, TalkooError):
            raise item
        if isinstance(item, _End):
            self._readers.pop(item.node_id, None)
        elif isinstance(item, Trouble):
            said = self._say(item)
            if said is not None:
                yield said
        elif not isinstance(item, _Changed):
            yield item

    async def _join(self, task: state_pb2.Task) -> None:
        if task.attempt == self._attempt:
            return
        self._attempt = task.attempt
        self._placed = frozenset(shard.node_id for shard in task.shards)
        for node_id in self._placed - self._readers.keys():
            self._start(await self._ledger.node(node_id))

    def _start(self, node: state_pb2.Node) -> None:
        if len(self._readers) < MAX_NODES:
            self._readers[node.id] = asyncio.create_task(self._read(node))

    async def _read(self, node: state_pb2.Node) -> None:
        """Read a node until the task has moved away or ended; what breaks, or ends too early, is opened again."""
        said = False
        pause_s = REOPEN_FIRST_S
        while True:
            floor_ns = self._seen_ns.get(node.id, -1)
            last = node.id not in self._placed
            try:
                async for item in self._open(node):
                    if item.time_ns > floor_ns:  # a stream that is opened again starts with what was seen before
                        self._seen_ns[node.id] = max(self._seen_ns.get(node.id, -1), item.time_ns)
                        pause_s = REOPEN_FIRST_S
                        await self._queue.put(item)
            except TalkooError as error:
                log.info("the stream of task %s from node %s broke: %s", self._task_id, node.name, error.message)
                last = last or error.code == OUTBOUND_ONLY
                if isinstance(error, Unavailable) and not said:
                    said = True
                    await self._queue.put(Trouble(node, error))
            if last:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), pause_s)
            pause_s = min(pause_s * 2, REOPEN_MAX_S)
        await self._queue.put(_End(node.id))

    async def _read_events(self, from_height: int) -> None:
        try:
            async for block in self._ledger.follow(from_height):
                if any(event.subject == self._task_id for event in block.events):
                    await self._queue.put(_Changed())
        except TalkooError as error:
            await self._queue.put(error)

    async def _stop(self) -> None:
        running = [*self._readers.values(), *([self._events] if self._events else [])]
        for reader in running:
            reader.cancel()
        await asyncio.gather(*running, return_exceptions=True)
