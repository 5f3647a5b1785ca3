"""The mesh: at most one two-way stream to each other member, whoever dialled it, and what is passed on between them.

A member that can be reached is dialled; one that only dials out is heard when it comes. Two members that cannot reach
each other are served by those in between: what is new from one is passed on to the other (`relay`). Peers say whom
they are connected with, so where everybody is connected with everybody nothing is passed on.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from pathlib import Path
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.errors import Conflict, Exhausted, InvalidInput, TalkooError, Unavailable
from talkoo_ledger.addresses import MAX_SHARED, AddressBook, check_endpoint
from talkoo_ledger.asks import Asks
from talkoo_ledger.settings import LedgerSettings
from talkoo_ledger.streams import Stream, unbundled
from talkoo_runtime.clock import Clock
from talkoo_runtime.grpc_client import drop_closed_channels, error_from_rpc, first_status, member_channel

log = logging.getLogger(__name__)

EXCHANGE = "/talkoo_api.ledger.v1.Consensus/Exchange"
ADDRESS_BOOK_FILE = "addresses.json"
SESSION_BYTES = 8
LOOK_EVERY_S = 0.1
"""How often is looked for members to dial."""
DIALS_AT_ONCE = 16
HELLO_TIMEOUT_S = 10.0
ANNOUNCE_AFTER_S = 0.05
"""Changes of our connections are gathered for so long before peers hear of them."""
MAX_NEIGHBOURS = 1_024
CROWD_PEERS = 8
"""With more peers than this votes go by way of a collector (`collecting`)."""
RELAYS = 2
"""Of those between two members that cannot reach each other, so many pass each message on."""
SECOND_STREAM_PAUSE_S = 1.0
ASK_ADDRESSES_EVERY_S = 30.0
ANSWER_ADDRESSES_EVERY_S = 5.0
ADDRESSES_TIMEOUT_S = 10.0
SAVE_EVERY_S = 2.0


class Hears(Protocol):
    """What the mesh needs of the node."""

    def members(self) -> frozenset[str]:
        """Names of all member organizations now."""

    def hello(self) -> service_pb2.Hello:
        """Chain, genesis, name and height."""

    def greeting(self) -> Iterable[service_pb2.PeerMessage]:
        """Everything of the height under way, for a peer that has just connected."""

    def welcome(self, organization: str) -> None:
        """Raises Exhausted while the last stream's faults are too fresh."""

    async def receive(self, organization: str, message: service_pb2.PeerMessage) -> None:
        """Waits while the node is behind. Raises PeerTrouble: close the stream."""


class Mesh:
    """All streams of this node."""

    def __init__(self, settings: LedgerSettings, node: Hears, clock: Clock) -> None:
        self.streams: dict[str, Stream] = {}
        self.asks = Asks()
        self.own = settings.organization
        self.book = AddressBook(Path(settings.state_dir) / ADDRESS_BOOK_FILE, self.own)
        for peer in settings.peers:
            if peer.organization != self.own:
                self.book.pin(peer.organization, peer.endpoint)
        self._settings = settings
        self._endpoint = own_endpoint(settings)
        self._node = node
        self._clock = clock
        self._session = secrets.token_bytes(SESSION_BYTES)
        self._dialing: set[str] = set()
        self._troubles: dict[str, str] = {}
        self._onward: dict[tuple[str, str], tuple[Stream, ...]] = {}
        self._announcement: asyncio.TimerHandle | None = None
        self._answered_addresses_s: dict[str, float] = {}

    # -- sending -----------------------------------------------------------------------------------------------------

    def send_all(self, message: service_pb2.PeerMessage) -> None:
        for stream in self.streams.values():
            stream.send(message)

    def send(self, organization: str, message: service_pb2.PeerMessage) -> None:
        stream = self.streams.get(organization)
        if stream is not None:
            stream.send(message)

    def relay(self, source: str, origin: str, *messages: service_pb2.PeerMessage) -> None:
        """Pass on what came from `source` and was new, and what `origin` (may be unknown: "") has said first."""
        for stream in self._passed_on_to(source, origin):
            for message in messages:
                stream.send(message)

    def pass_on(self, source: str, origin: str, message: service_pb2.PeerMessage) -> None:
        """What was given to us to be told to everybody."""
        for name, stream in self.streams.items():
            if name not in (source, origin):
                stream.send(message)

    @property
    def crowded(self) -> bool:
        return len(self.streams) > CROWD_PEERS

    def spreads(self, organization: str) -> bool:
        """Whether everybody whom we can tell something can hear it of this peer, as far as they have said."""
        if organization not in self.streams:
            return False
        return all(name == organization or organization in each.neighbours for name, each in self.streams.items())

    def reaches(self, organization: str) -> bool:
        """Whether what it says can come here, straight or through a neighbour."""
        return organization in self.streams or any(organization in each.neighbours for each in self.streams.values())

    def connected(self) -> list[str]:
        return sorted(self.streams)

    def _passed_on_to(self, source: str, origin: str) -> tuple[Stream, ...]:
        key = (source, origin)
        known = self._onward.get(key)
        if known is None:
            known = () if origin == self.own else tuple(self._lacking(source, origin))
            self._onward[key] = known
        return known

    def _lacking(self, source: str, origin: str) -> Iterable[Stream]:
        """Streams to those that neither `source` nor `origin` can have told, as far as they have said."""
        told_by = self.streams.get(source)
        for name, stream in self.streams.items():
            if name in (source, origin) or source in stream.neighbours or origin in stream.neighbours:
                continue
            between = (told_by.neighbours if told_by is not None else frozenset()) & stream.neighbours | {self.own}
            first = sorted(between, key=lambda relay: _draw(source, name, relay))[:RELAYS]
            if self.own in first:
                yield stream

    # -- dialling ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a stream to every member that can be reached. Forever."""
        saved_s = asked_s = 0.0
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as dials:
            while True:
                members = self._node.members()
                self._part_from_leavers(members)
                for name in sorted(members - self.streams.keys() - self._dialing - {self.own}):
                    endpoint = self.book.choose(name, self._clock.now_ns())
                    if endpoint is not None and len(self._dialing) < DIALS_AT_ONCE:
                        self._dialing.add(name)
                        dials.create_task(self._dial_once(name, endpoint))
                if self.book.dirty and loop.time() - saved_s >= SAVE_EVERY_S:
                    saved_s = loop.time()
                    await self._save()
                if loop.time() - asked_s >= ASK_ADDRESSES_EVERY_S and self.streams:
                    asked_s = loop.time()
                    self.ask_addresses(random.choice(list(self.streams.values())))  # noqa: S311
                await asyncio.sleep(LOOK_EVERY_S)

    async def _dial_once(self, organization: str, endpoint: str) -> None:
        await self._dial(organization, endpoint)
        drop_closed_channels()  # only now does nothing of ours refer to it

    async def _dial(self, organization: str, endpoint: str) -> None:
        """One attempt, and the stream if it comes to one."""
        stream = Stream(organization, dialed=True)
        joined, trouble = False, "it closed the stream"
        try:
            async with member_channel(self._settings, endpoint, organization) as channel:
                exchange = channel.stream_stream(EXCHANGE, service_pb2.PeerMessage.SerializeToString, _readable)
                call = exchange(self._outgoing(stream))
                with first_status(call):
                    first = await asyncio.wait_for(anext(aiter(call), None), HELLO_TIMEOUT_S)
                    self._check_hello(organization, first)
                    assert first is not None
                    self.book.succeeded(organization, endpoint, self._clock.now_ns())
                    self._join(stream, first.hello)
                    joined = True
                    await self._read_until_closed(stream, call)
        except TimeoutError:
            trouble = "it does not answer"
        except grpc.aio.AioRpcError as error:
            trouble = self._told(organization, endpoint, error_from_rpc(error))
        except TalkooError as error:
            trouble = self._told(organization, endpoint, error)
        finally:
            stream.close()
            self._leave(stream)
            self._dialing.discard(organization)
        jitter = random.uniform(0.5, 1.5)  # noqa: S311
        if trouble:
            self.book.failed(organization, endpoint, self._clock.now_ns(), jitter)
        if trouble and (joined or trouble != self._troubles.get(organization)):
            log.info("no connection to %s at %s: %s", organization, endpoint, trouble)
        self._troubles[organization] = trouble

    def _told(self, organization: str, endpoint: str, error: TalkooError) -> str:
        """Why a dial failed, empty when there is nothing wrong: the other direction's stream is the one that stays."""
        if error.code != "already_connected":
            return error.message
        self.book.later(organization, endpoint, self._clock.now_ns(), SECOND_STREAM_PAUSE_S)
        return ""

    async def _outgoing(self, stream: Stream) -> AsyncIterator[service_pb2.PeerMessage]:
        yield self._hello()
        async for message in stream.outgoing():
            yield message

    async def serve(
        self, organization: str, requests: AsyncIterator[service_pb2.PeerMessage]
    ) -> AsyncIterator[service_pb2.PeerMessage]:
        """The stream of a peer that dialled us: what we send. Raises what closes it."""
        if self._settings.outbound_only:
            raise Unavailable(f"{self.own} takes no streams, it opens them itself", code="outbound_only")
        try:
            first = await asyncio.wait_for(anext(aiter(requests), None), HELLO_TIMEOUT_S)
        except TimeoutError:
            first = None
        hello = self._check_hello(organization, first)
        self._node.welcome(organization)
        stream = Stream(organization, dialed=False)
        self._join(stream, hello)
        reading = asyncio.create_task(self._read(stream, requests))
        try:
            yield self._hello()
            async for message in stream.outgoing():
                yield message
            log.info("the stream of %s ended", organization)
            if reading.done():
                reading.result()
        finally:
            stream.close()
            self._leave(stream)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read_until_closed(self, stream: Stream, call: AsyncIterable[service_pb2.PeerMessage | None]) -> None:
        """Of a stream that we dialled. Raises what the peer or its messages end it with."""
        reading = asyncio.create_task(self._read(stream, call))
        try:
            await stream.closed.wait()
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, stream: Stream, messages: AsyncIterable[service_pb2.PeerMessage | None]) -> None:
        try:
            async for message in messages:
                if stream.closed.is_set():
                    return
                if message is None:
                    raise InvalidInput(f"{stream.organization} sent bytes that are no message", code="malformed")
                for each in unbundled(message):
                    await self._node.receive(stream.organization, each)
        finally:
            stream.close()

    # -- joining and leaving -----------------------------------------------------------------------------------------

    def _hello(self) -> service_pb2.PeerMessage:
        hello = self._node.hello()
        hello.endpoint, hello.session = self._endpoint, self._session
        return service_pb2.PeerMessage(hello=hello)

    def _check_hello(self, organization: str, message: service_pb2.PeerMessage | None) -> service_pb2.Hello:
        if message is None or message.WhichOneof("message") != "hello":
            raise InvalidInput("a stream between ledger nodes begins with a hello", code="no_hello")
        hello, own = message.hello, self._node.hello()
        if hello.organization != organization:
            raise InvalidInput(f"{organization} says it is {hello.organization[:64]!r}", code="wrong_hello")
        if (hello.chain_id, hello.genesis_sha256) != (own.chain_id, own.genesis_sha256):
            theirs = hello.chain_id[:64]
            log.warning("refused %s: it has another genesis (chain %r)", organization, theirs)
            raise Conflict(
                f"your genesis (chain {theirs!r}) is not ours (chain {own.chain_id!r}); "
                "use the federation's genesis file",
                code="wrong_genesis",
            )
        if hello.endpoint:
            check_endpoint(hello.endpoint)
        return hello

    def _join(self, stream: Stream, hello: service_pb2.Hello) -> None:
        """Make it the stream to that peer. Raises Conflict (code `already_connected`).

        Of two that were dialled at once both sides keep the one that the first by name dialled.
        """
        stream.session = hello.session
        other = self.streams.get(stream.organization)
        if other is not None:
            if other.session == stream.session and self._preferred(other) and not self._preferred(stream):
                raise Conflict(f"{stream.organization} is connected already", code="already_connected")
            other.close()
        if hello.endpoint:
            self.book.hear(stream.organization, stream.organization, hello.endpoint)
        self.streams[stream.organization] = stream
        stream.begin(self._node.greeting())
        self._changed()
        self.ask_addresses(stream)
        log.info("connected to %s, which %s dialled", stream.organization, "we" if stream.dialed else "it")

    def _preferred(self, stream: Stream) -> bool:
        return stream.dialed == (self.own < stream.organization)

    def _leave(self, stream: Stream) -> None:
        if self.streams.get(stream.organization) is not stream:
            return
        del self.streams[stream.organization]
        self.asks.lost(stream.organization)
        self._changed()

    def _part_from_leavers(self, members: frozenset[str]) -> None:
        for name in [name for name in self.streams if name not in members]:
            log.info("%s is no member any more; its stream is closed", name)
            self.streams[name].close()
        self.book.keep_only(members)

    def _changed(self) -> None:
        """Whom we are connected with is another set: forget who lacks what, and tell the peers soon."""
        self._onward.clear()
        if self._announcement is None:
            self._announcement = asyncio.get_running_loop().call_later(ANNOUNCE_AFTER_S, self._announce)

    def _announce(self) -> None:
        self._announcement = None
        neighbours = service_pb2.Neighbours(organizations=self.connected())
        self.send_all(service_pb2.PeerMessage(neighbours=neighbours))

    # -- what peers say of the mesh ----------------------------------------------------------------------------------

    def neighbours_of(self, organization: str, message: service_pb2.Neighbours) -> None:
        """Raises InvalidInput (code `too_many_neighbours`)."""
        if len(message.organizations) > MAX_NEIGHBOURS:
            raise InvalidInput(f"{len(message.organizations)} neighbours", code="too_many_neighbours")
        stream = self.streams.get(organization)
        if stream is not None:
            stream.neighbours = frozenset(message.organizations) & self._node.members()
            self._onward.clear()

    def ask_addresses(self, stream: Stream) -> None:
        """Ask without waiting; the answer comes to `heard_addresses`."""
        self.asks.ask_later(
            stream,
            service_pb2.Ask(addresses=service_pb2.AddressesRequest()),
            ADDRESSES_TIMEOUT_S,
            lambda answer: self._heard_addresses(stream.organization, answer),
        )

    def addresses_for(self, organization: str) -> service_pb2.Addresses:
        """What a peer that asks is told; nothing when it asks too often."""
        now = asyncio.get_running_loop().time()
        if now - self._answered_addresses_s.get(organization, -ANSWER_ADDRESSES_EVERY_S) < ANSWER_ADDRESSES_EVERY_S:
            return service_pb2.Addresses()
        self._answered_addresses_s[organization] = now
        shared = [service_pb2.Address(organization=name, endpoint=at) for name, at in self.book.shared()]
        return service_pb2.Addresses(addresses=[a for a in shared if a.organization != organization])

    def _heard_addresses(self, source: str, answer: service_pb2.Answer) -> None:
        """Raises InvalidInput for what no honest node answers."""
        if len(answer.addresses.addresses) > MAX_SHARED:
            raise InvalidInput(f"{len(answer.addresses.addresses)} addresses at once", code="too_many_addresses")
        members = self._node.members()
        for address in answer.addresses.addresses:
            if address.organization in members:
                self.book.hear(source, address.organization, address.endpoint)

    async def _save(self) -> None:
        content, self.book.dirty = self.book.encoded(), False
        try:
            await asyncio.to_thread(self.book.write, content)
        except (OSError, Exhausted) as error:
            log.warning("the address book cannot be written: %s", error)


def _readable(raw: bytes) -> service_pb2.PeerMessage | None:
    """What a dialled peer says; None for bytes that are no message. An exception here would reach nobody in time."""
    try:
        return service_pb2.PeerMessage.FromString(raw)
    except DecodeError:
        return None


def own_endpoint(settings: LedgerSettings) -> str:
    """host:port that others are told to reach us at; empty: none. Raises InvalidInput (code `bad_endpoint`)."""
    if settings.outbound_only:
        return ""
    if settings.advertise:
        check_endpoint(settings.advertise)
        return settings.advertise
    host = settings.listen.rpartition(":")[0]
    return "" if host in ("", "0.0.0.0", "[::]", "::") else settings.listen  # noqa: S104


def _draw(source: str, target: str, relay: str) -> bytes:
    """Rendezvous hashing: everybody between finds the same few relays, other ones for other pairs."""
    return hashlib.sha256(f"{source}\n{target}\n{relay}".encode()).digest()
