"""One two-way stream between two ledger nodes, whichever of them dialled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable

from talkoo_api.ledger.v1 import service_pb2

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 4_096
QUEUE_BYTES = 32 * 1024 * 1024
"""Of blocks, transactions and answers that wait to be sent to one peer."""


class Stream:
    """What we send to one peer, in order, and what we know of it while the stream lives."""

    def __init__(self, organization: str, *, dialed: bool) -> None:
        self.organization = organization
        self.dialed = dialed
        """Whether we dialled; otherwise the peer did."""
        self.session = b""
        self.neighbours: frozenset[str] = frozenset()
        """Whom the peer says it is connected with."""
        self.closed = asyncio.Event()
        self._queue: deque[tuple[int, service_pb2.PeerMessage]] = deque()
        self._queued_bytes = 0
        self._news = asyncio.Event()
        self._dropping = False

    @property
    def queued(self) -> int:
        """Messages that wait to be sent."""
        return len(self._queue)

    def begin(self, messages: Iterable[service_pb2.PeerMessage]) -> None:
        """What every stream begins with, whatever its size."""
        for message in messages:
            self._queue.append((0, message))
        self._news.set()

    def send(self, message: service_pb2.PeerMessage) -> None:
        """Queue a message; one that finds no room is dropped, the round steps make up for it."""
        if self.closed.is_set():
            return
        size = weight(message)
        if len(self._queue) >= QUEUE_MESSAGES or self._queued_bytes + size > QUEUE_BYTES:
            level = logging.DEBUG if self._dropping else logging.WARNING
            log.log(level, "%s reads too slowly; a message to it was dropped", self.organization)
            self._dropping = True
            return
        self._queue.append((size, message))
        self._queued_bytes += size
        self._news.set()

    async def outgoing(self) -> AsyncIterator[service_pb2.PeerMessage]:
        """Everything queued, until the stream is closed."""
        while not self.closed.is_set():
            if not self._queue:
                self._dropping = False
                self._news.clear()
                await self._news.wait()
                continue
            size, message = self._queue.popleft()
            self._queued_bytes -= size
            yield message

    def close(self) -> None:
        """End the stream; whoever reads and writes it stops."""
        self.closed.set()
        self._news.set()


def weight(message: service_pb2.PeerMessage) -> int:
    """Bytes of what makes a message large; small ones are bounded by their number."""
    kind = message.WhichOneof("message")
    if kind == "block":
        return len(message.block.block)
    if kind == "txs":
        return sum(map(len, message.txs.txs))
    if kind == "answer":
        return message.answer.ByteSize()
    return 0
