"""Links to the other organizations' ledger nodes: a full mesh of gRPC streams, one in each direction."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable

import grpc
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc

from talkoo_ledger.settings import LedgerSettings, Peer
from talkoo_runtime.grpc_client import error_from_rpc, service_channel

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 4_096
RECONNECT_FIRST_S = 0.1
RECONNECT_MAX_S = 2.0
CATCH_UP_TIMEOUT_S = 30.0


class Link:
    """Our side of the connection to one peer: sends what is queued, reconnects, and fetches blocks.

    A new connection begins with our hello and everything of the height under way, so nothing queued before is needed.
    """

    def __init__(self, settings: LedgerSettings, peer: Peer, greeting: Callable[[], Iterable[service_pb2.PeerMessage]]):
        self.organization = peer.organization
        self.connected = False
        self._streaming = False
        self._settings = settings
        self._endpoint = peer.endpoint
        self._greeting = greeting
        self._queue: asyncio.Queue[service_pb2.PeerMessage] = asyncio.Queue(QUEUE_MESSAGES)
        self._last_trouble = ""

    def send(self, message: service_pb2.PeerMessage) -> None:
        """Queue a message; one that finds no room is dropped, the round steps make up for it."""
        if not self._streaming:
            return
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("%s reads too slowly; a message to it was dropped", self.organization)

    async def run(self) -> None:
        """Keep the stream open forever."""
        pause = RECONNECT_FIRST_S
        async with service_channel(self._settings, self._endpoint) as channel:
            stub = service_pb2_grpc.ConsensusStub(channel)  # type: ignore[no-untyped-call]  # generated
            while True:
                try:
                    async for _ in stub.Exchange(self._outgoing()):
                        if not self.connected:
                            self.connected, pause = True, RECONNECT_FIRST_S
                            self._last_trouble = ""
                            log.info("connected to %s", self.organization)
                    trouble = "it closed the stream"
                except grpc.aio.AioRpcError as error:
                    trouble = error_from_rpc(error).message
                self._lost(trouble)
                # Jitter: four nodes that lost one another must not all dial in step.
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
                pause = min(pause * 2, RECONNECT_MAX_S)

    def _lost(self, trouble: str) -> None:
        if self.connected or trouble != self._last_trouble:
            log.info("no connection to %s: %s", self.organization, trouble)
        self.connected, self._streaming, self._last_trouble = False, False, trouble

    async def _outgoing(self) -> AsyncIterator[service_pb2.PeerMessage]:
        while not self._queue.empty():
            self._queue.get_nowait()
        greeting = list(self._greeting())
        self._streaming = True  # from here on nothing is missed: what the greeting does not hold is queued behind it
        for message in greeting:
            yield message
        while True:
            yield await self._queue.get()

    async def blocks_from(self, height: int) -> AsyncIterator[service_pb2.RawBlock]:
        """Decided blocks with their commits. Raises the peer's typed error."""
        async with service_channel(self._settings, self._endpoint) as channel:
            stub = service_pb2_grpc.ConsensusStub(channel)  # type: ignore[no-untyped-call]  # generated
            try:
                request = service_pb2.BlocksRequest(from_height=height)
                async for raw in stub.BlocksFrom(request, timeout=CATCH_UP_TIMEOUT_S):
                    yield raw
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error) from None


class Mesh:
    """All links of this node."""

    def __init__(self, settings: LedgerSettings, greeting: Callable[[], Iterable[service_pb2.PeerMessage]]) -> None:
        self.links = {peer.organization: Link(settings, peer, greeting) for peer in settings.peers}

    def send_all(self, message: service_pb2.PeerMessage) -> None:
        for link in self.links.values():
            link.send(message)

    def connected(self) -> list[str]:
        return sorted(name for name, link in self.links.items() if link.connected)
