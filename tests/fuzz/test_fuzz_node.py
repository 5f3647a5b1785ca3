"""A real node among strangers: a member that sends anything over its stream, and clients that ask anything.

One process decides blocks by itself all the while. Whatever comes in, it lives, goes on deciding, keeps its memory, and
answers with a value, a typed error, or a closed stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from talkoo_api.ledger.v1 import service_pb2, tx_pb2
from talkoo_ledger.streams import unbundled

from talkoo_runtime.grpc_errors import FAMILY_KEY
from talkoo_runtime.pki import CERTIFICATE_FILE, KEY_FILE
from talkoo_runtime.transactions import sign_transaction
from talkoo_sim.fuzzing import almost, fuzzed
from talkoo_sim.ledger_chain import CHAIN_ID, address, key_of
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.scripted_peer import genesis_with_small_members

ALONE = "north"
STRANGERS = ("stranger-1", "stranger-2", "stranger-3", "stranger-4")
MOST_GROWTH_BYTES = 192 * 1024 * 1024
MOST_LOG_BYTES = 16 * 1024 * 1024
ANSWER_S = 60.0
FENCE = 2**40
"""The number of the question that is answered when everything before it has been read."""
SERVICE = "/talkoo_api.ledger.v1"
TYPED = {"invalid_input", "not_found", "conflict", "permission_denied", "unavailable", "exhausted", "corrupt"}


class Target:
    """The node, and what it is spoken to with: bytes, so that they need not be messages."""

    def __init__(self, folder: Path) -> None:
        genesis = genesis_with_small_members(*STRANGERS)
        organizations = [each if each.name == ALONE else replace(each, stake_utlk=0) for each in genesis.organizations]
        self.ledgers = Ledgers(folder, replace(genesis, organizations=organizations))
        self.ledgers.start(ALONE)
        asyncio.run(self._up())
        self.process = psutil.Process(self.ledgers.processes[ALONE].pid)
        self.channels = {name: self._channel(name, "ledger") for name in STRANGERS}
        self.client = self._channel(ALONE, "gateway")

    async def _up(self) -> None:
        await self.ledgers.reach(2, ALONE)
        await asyncio.gather(*(channel.close() for channel in self.ledgers.channels))
        self.ledgers.channels.clear()

    def _channel(self, organization: str, role: str) -> grpc.Channel:
        folder = self.ledgers.certificate(organization, role)
        credentials = grpc.ssl_channel_credentials(
            (self.ledgers.folder / "trust.pem").read_bytes(),
            (folder / KEY_FILE).read_bytes(),
            (folder / CERTIFICATE_FILE).read_bytes(),
        )
        return grpc.secure_channel(f"127.0.0.1:{self.ledgers.ports[ALONE]}", credentials)

    def ask(self, method: str, request: bytes, timeout_s: float = ANSWER_S) -> bytes:
        return bytes(self.client.unary_unary(f"{SERVICE}.Ledger/{method}")(request, timeout=timeout_s))

    def stream(self, method: str, request: bytes, timeout_s: float) -> list[bytes]:
        return list(self.client.unary_stream(f"{SERVICE}.Ledger/{method}")(request, timeout=timeout_s))

    def height(self) -> int:
        return service_pb2.Status.FromString(self.ask("GetStatus", b"")).height

    def hello(self, organization: str) -> bytes:
        genesis = self.ledgers.genesis
        hello = service_pb2.Hello(
            chain_id=genesis.chain_id, genesis_sha256=genesis.sha256(), organization=organization, session=b"fuzz"
        )
        return service_pb2.PeerMessage(hello=hello).SerializeToString()

    def say(self, organization: str, messages: list[bytes], hello: bytes | None = None) -> None:
        """Open a stream and say everything; returns when all of it was read. Raises RpcError."""
        question = service_pb2.Ask(id=FENCE, blocks=service_pb2.BlocksRequest(from_height=1, to_height=1))
        fence = service_pb2.PeerMessage(ask=question).SerializeToString()
        for raw in self._exchange(organization, [hello or self.hello(organization), *messages, fence]):
            together = unbundled(service_pb2.PeerMessage.FromString(raw))
            if any(message.WhichOneof("message") == "answer" and message.answer.id == FENCE for message in together):
                return

    def listen(self, organization: str, kinds: set[str]) -> dict[str, bytes]:
        """One message of each kind that the node says."""
        heard: dict[str, bytes] = {}
        for raw in self._exchange(organization, [self.hello(organization)]):
            for message in unbundled(service_pb2.PeerMessage.FromString(raw)):
                heard[message.WhichOneof("message") or ""] = message.SerializeToString()
            if kinds <= heard.keys():
                break
        return heard

    def _exchange(self, organization: str, messages: list[bytes]) -> Iterator[bytes]:
        outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        for message in messages:
            outgoing.put(message)
        exchange = self.channels[organization].stream_stream(f"{SERVICE}.Consensus/Exchange")
        call = exchange(iter(outgoing.get, None), timeout=ANSWER_S)
        try:
            yield from call
        finally:
            outgoing.put(None)
            call.cancel()

    def check_health(self) -> None:
        assert self.process.is_running()
        assert self.process.status() != psutil.STATUS_ZOMBIE

    def close(self) -> None:
        for channel in (*self.channels.values(), self.client):
            channel.close()
        asyncio.run(self.ledgers.close())


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Checked at the end: it still decides, has grown little, and none of its own code has failed."""
    node = Target(tmp_path_factory.mktemp("fuzz"))
    began_bytes = node.process.memory_info().rss
    yield node
    try:
        node.check_health()
        height = node.height()
        asyncio.run(node.ledgers.reach(height + 2, ALONE))
        log = node.ledgers.log(ALONE)
        assert "Traceback" not in log, log[log.index("Traceback") :][:3000]
        assert len(log) < MOST_LOG_BYTES
        assert node.process.memory_info().rss - began_bytes < MOST_GROWTH_BYTES
    finally:
        node.close()


def answered(call: Callable[[], Any], *also: grpc.StatusCode) -> Any:
    """What it returns; None after a typed error. Fails on an error of the node's own."""
    failed: Any = None
    try:
        return call()
    except grpc.RpcError as error:
        failed = error
    family = dict(failed.trailing_metadata() or ()).get(FAMILY_KEY)
    assert family in TYPED or failed.code() in also, (failed.code(), failed.details(), family)
    return None


# --- peers ---

SAID = {"hello", "neighbours", "ask", "step", "proposal", "block", "vote"}
"""What a node that decides says to whoever listens."""


@pytest.fixture(scope="module")
def originals(target: Target) -> list[bytes]:
    """What the node itself says to a peer, one of each kind; and what peers say that it does not."""
    by_kind = target.listen(STRANGERS[0], SAID)
    roots = service_pb2.Ask(id=3, module_roots=service_pb2.ModuleRootsRequest(height=1))
    chunk = service_pb2.Ask(id=4, chunk=service_pb2.ChunkRequest(height=1, format=1, index=2**31))
    light = service_pb2.Ask(id=5, light_block=service_pb2.LightBlockRequest(height=1))
    tx = sign_transaction(key_of("alice"), CHAIN_ID, 0, 1_000, tx_pb2.Transfer(to=address("bob"), amount_utlk=5), "")
    made = [
        service_pb2.PeerMessage(txs=service_pb2.TxBatch(txs=[tx, b"", tx])),
        service_pb2.PeerMessage(ask=roots),
        service_pb2.PeerMessage(ask=chunk),
        service_pb2.PeerMessage(ask=light),
        service_pb2.PeerMessage(ask=service_pb2.Ask(id=6, snapshots=service_pb2.SnapshotsRequest())),
        service_pb2.PeerMessage(ask=service_pb2.Ask(id=7, addresses=service_pb2.AddressesRequest())),
        service_pb2.PeerMessage(answer=service_pb2.Answer(id=8, blocks=service_pb2.BlockBatch())),
        service_pb2.PeerMessage(neighbours=service_pb2.Neighbours(organizations=["north", "x" * 99])),
        service_pb2.PeerMessage(step=service_pb2.RoundStep(height=2**63, round=2**31, step=99)),
    ]
    singly = [*by_kind.values(), *(message.SerializeToString() for message in made)]
    bundle = service_pb2.PeerMessage(bundle=service_pb2.Bundle(messages=singly))
    nested = service_pb2.PeerMessage(bundle=service_pb2.Bundle(messages=[bundle.SerializeToString()]))
    return [*singly, bundle.SerializeToString(), nested.SerializeToString()]


def reframed(raw: bytes, inner: bytes) -> bytes:
    """A message whose kind is one of those that carry CometBFT bytes, with other bytes in it."""
    message = service_pb2.PeerMessage.FromString(raw)
    kind = message.WhichOneof("message")
    if kind in ("vote", "proposal"):
        return service_pb2.PeerMessage(**{kind: inner}).SerializeToString()
    if kind == "block":
        message.block.block = inner
    elif kind == "txs":
        message.txs.txs.append(inner)
    elif kind == "bundle":
        message.bundle.messages.append(inner)
    return message.SerializeToString()


@fuzzed(300)
@given(data=st.data())
def test_whatever_a_member_sends_over_its_stream_is_read_or_closes_it(
    target: Target, originals: list[bytes], data: st.DataObject
) -> None:
    insides = [
        getattr(message, kind) if kind in ("vote", "proposal") else message.block.block
        for message in map(service_pb2.PeerMessage.FromString, originals)
        if (kind := message.WhichOneof("message")) in ("vote", "proposal", "block")
    ]
    one = st.one_of(almost(*originals), st.builds(reframed, st.sampled_from(originals), almost(*insides)))
    messages = data.draw(st.lists(one, min_size=1, max_size=8))
    stranger = data.draw(st.sampled_from(STRANGERS))
    answered(lambda: target.say(stranger, messages))
    target.check_health()


@fuzzed(100)
@given(data=st.data())
def test_a_stream_begins_with_a_right_hello_or_is_refused(
    target: Target, originals: list[bytes], data: st.DataObject
) -> None:
    stranger = data.draw(st.sampled_from(STRANGERS))
    hello = data.draw(almost(target.hello(stranger), *originals))
    answered(lambda: target.say(stranger, [], hello))
    target.check_health()


def test_a_peer_that_sends_too_much_rubbish_is_closed_and_let_in_again_later(target: Target) -> None:
    rubbish = [service_pb2.PeerMessage(vote=b"\x00" * (n + 1)).SerializeToString() for n in range(64)]
    with pytest.raises(grpc.RpcError) as closed:
        for _ in range(64):
            target.say(STRANGERS[0], rubbish)
    assert dict(closed.value.trailing_metadata())[FAMILY_KEY] in ("invalid_input", "exhausted")
    target.check_health()


# --- clients ---

METHODS = list(service_pb2.DESCRIPTOR.services_by_name["Ledger"].methods)
TXS = [
    sign_transaction(key_of("alice"), CHAIN_ID, nonce, 1_000, getattr(tx_pb2, kind.message_type.name)(), "")
    for nonce in (0, 1)
    for kind in tx_pb2.TxBody.DESCRIPTOR.oneofs_by_name["message"].fields
    if kind.message_type is not None
]
SHORT_S = 0.15
"""For calls that wait or follow as long as they are asked to."""


def values(field: Any) -> st.SearchStrategy[Any]:
    """For a scalar field of a request: likely ones, extreme ones, any."""
    if field.type == field.TYPE_BYTES:
        return st.one_of(almost(*TXS), st.binary(max_size=40))
    if field.cpp_type == field.CPPTYPE_STRING:
        likely = st.sampled_from(("accounts", "tasks", "supply", address("alice"), "", "\x00", "é" * 500))
        return st.one_of(likely, st.text(st.characters(codec="utf-8"), max_size=30))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return st.booleans()
    highest = 2**32 - 1 if field.cpp_type == field.CPPTYPE_UINT32 else 2**64 - 1
    return st.one_of(st.integers(0, 3), st.sampled_from((highest, highest // 2, highest // 2 + 1)))


@st.composite
def requests(draw: st.DrawFn, method: Any) -> bytes:
    """A request with any values in its fields, or almost one."""
    from google.protobuf.message_factory import GetMessageClass

    request = GetMessageClass(method.input_type)()
    for field in method.input_type.fields:
        if field.is_repeated:
            getattr(request, field.name).extend(draw(st.lists(values(field), max_size=5)))
        elif draw(st.booleans()):
            setattr(request, field.name, draw(values(field)))
    raw = request.SerializeToString()
    return draw(st.one_of(st.just(raw), st.just(raw), almost(raw)))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@fuzzed(40)
@given(data=st.data())
def test_any_request_of_a_client_is_answered_or_refused(target: Target, method: Any, data: st.DataObject) -> None:
    request = data.draw(requests(method))
    waits = method.name in ("WaitTx", "Follow", "Blocks")
    late = (grpc.StatusCode.DEADLINE_EXCEEDED,) if waits else ()
    call = target.stream if method.server_streaming else target.ask
    answered(lambda: call(method.name, request, SHORT_S if waits else ANSWER_S), *late)
    target.check_health()
