"""One two-way stream between two ledger nodes, whichever of them dialled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable

from google.protobuf.message import DecodeError
from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.errors import InvalidInput

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 4_096
QUEUE_BYTES = 32 * 1024 * 1024
"""Of blocks, transactions and answers that wait to be sent to one peer."""
UNHURRIED = frozenset({"txs", "step", "neighbours"})
"""Messages for which nobody waits: where others left just before, they leave together with the next."""
PAUSE_S = 0.05
"""Since the last departure, after which they leave alone."""
BUNDLE_MESSAGES = 256
BUNDLE_BYTES = 1024 * 1024
"""A message that is larger leaves alone."""


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
        self._departed_s = 0.0
        self._pause: asyncio.TimerHandle | None = None
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
        if message.WhichOneof("message") not in UNHURRIED:
            self._news.set()
        elif self._pause is None:
            loop = asyncio.get_running_loop()
            self._pause = loop.call_at(self._departed_s + PAUSE_S, self._news.set)

    async def outgoing(self) -> AsyncIterator[service_pb2.PeerMessage]:
        """Everything queued, until the stream is closed; what waits together is sent together."""
        while not self.closed.is_set():
            await self._news.wait()
            self._news.clear()
            self._end_pause()
            while self._queue and not self.closed.is_set():
                self._departed_s = asyncio.get_running_loop().time()
                yield self._next()
            self._dropping = False

    def close(self) -> None:
        """End the stream; whoever reads and writes it stops."""
        self.closed.set()
        self._end_pause()
        self._news.set()

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _next(self) -> service_pb2.PeerMessage:
        """The first of the queue, with as many of the next as go into one message."""
        first = self._pop()
        if not self._queue:
            return first
        bundle = [first.SerializeToString()]
        room_bytes = BUNDLE_BYTES - len(bundle[0])
        while self._queue and len(bundle) < BUNDLE_MESSAGES and self._queue[0][1].ByteSize() <= room_bytes:
            bundle.append(self._pop().SerializeToString())
            room_bytes -= len(bundle[-1])
        return service_pb2.PeerMessage(bundle=service_pb2.Bundle(messages=bundle)) if len(bundle) > 1 else first

    def _pop(self) -> service_pb2.PeerMessage:
        size, message = self._queue.popleft()
        self._queued_bytes -= size
        return message


def unbundled(message: service_pb2.PeerMessage) -> Iterable[service_pb2.PeerMessage]:
    """What a peer sent together, one by one. Raises InvalidInput (`malformed`, `too_many_messages`).

    A bundle inside a bundle stays one: nobody knows what to do with it.
    """
    if message.WhichOneof("message") != "bundle":
        return (message,)
    if len(message.bundle.messages) > BUNDLE_MESSAGES:
        raise InvalidInput(f"{len(message.bundle.messages)} messages in one", code="too_many_messages")
    try:
        return [service_pb2.PeerMessage.FromString(raw) for raw in message.bundle.messages]
    except DecodeError as error:
        raise InvalidInput(f"a message in a bundle cannot be read: {error}", code="malformed") from None


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
