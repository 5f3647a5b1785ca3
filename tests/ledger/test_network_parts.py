"""The address book, the pace of peers, and who passes on what: without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talkoo_api.ledger.v1 import service_pb2
from talkoo_ledger import addresses
from talkoo_ledger.addresses import AddressBook, check_endpoint
from talkoo_ledger.asks import Asks
from talkoo_ledger.intake import PACE_BURST_S, PACE_BYTES_PER_S, PACE_MESSAGES_PER_S, Pace
from talkoo_ledger.peers import RELAYS, Mesh
from talkoo_ledger.settings import LedgerSettings, Peer
from talkoo_ledger.streams import BUNDLE_BYTES, BUNDLE_MESSAGES, PAUSE_S, QUEUE_BYTES, QUEUE_MESSAGES, Stream, unbundled

from talkoo_core.errors import Conflict, InvalidInput, Unavailable
from talkoo_runtime.clock import SystemClock

SECOND_NS = 10**9
VOTE = service_pb2.PeerMessage(vote=b"v")


@pytest.fixture
def book(tmp_path: Path) -> AddressBook:
    return AddressBook(tmp_path / "addresses.json", "own")


@pytest.mark.parametrize(
    "endpoint", ["", "host", "host:", ":1", "host:0", "host:65536", "h:99999999999", "a b:1", "h\x00:1"]
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidInput, match="is no host:port"):
        check_endpoint(endpoint)
    with pytest.raises(InvalidInput):
        check_endpoint("h" * addresses.MAX_ENDPOINT_LENGTH + ":1")


def test_a_book_remembers_what_answered_and_what_members_said(book: AddressBook, tmp_path: Path) -> None:
    book.pin("north", "north:1")
    book.hear("east", "east", "east:1")
    book.hear("east", "south", "south:1")
    book.succeeded("north", "north:1", 5)
    book.write(book.encoded())
    again = AddressBook(tmp_path / "addresses.json", "own")
    assert {again.choose(name, 0) for name in ("north", "east", "south")} == {"north:1", "east:1", "south:1"}
    assert again.shared() == [("north", "north:1"), ("east", "east:1")], "hearsay is not told further"


def test_a_failed_dial_waits_longer_each_time_and_hearsay_that_never_answers_is_forgotten(book: AddressBook) -> None:
    book.pin("north", "north:1")
    book.hear("east", "south", "south:1")
    pauses = []
    now = 0
    for _ in range(addresses.FORGET_AFTER_FAILURES):
        for name in ("north", "south"):
            book.failed(name, f"{name}:1", now, 1.0)
        pauses.append(next(p for p in range(0, 100_000, 100) if book.choose("north", now + p * 10**6)))
    assert pauses == sorted(pauses)
    assert pauses[-1] == addresses.RETRY_MAX_S * 1000
    assert book.choose("south", 10**18) is None
    assert book.choose("north", 10**18) == "north:1"


def test_a_member_that_moves_is_found_at_its_new_endpoint(book: AddressBook) -> None:
    book.hear("east", "east", "old:1")
    book.succeeded("east", "old:1", 1)
    book.hear("east", "east", "new:1")
    assert [book.choose("east", 0), len(book)] == ["new:1", 1]


def test_a_liar_cannot_crowd_out_what_others_said(book: AddressBook) -> None:
    for name in ("north", "east"):
        book.hear("east", name, f"{name}:1")
    book.succeeded("north", "north:1", 1)
    for number in range(5_000):
        book.hear("liar", "north", f"false-{number}:1")
        book.hear("liar", f"org-{number}", "false:1")
    assert len(book) <= addresses.MAX_FROM_ONE_SOURCE + 2
    assert book.choose("north", 0) == "north:1"
    for number in range(5_000):
        book.hear(f"liar-{number}", f"org-{number % 700}", f"false-{number}:1")
    assert len(book) <= addresses.MAX_ENTRIES
    assert book.choose("east", 0) == "east:1"
    book.distrust("liar")
    assert ("north", "north:1") in book.shared()
    book.keep_only({"north"})
    assert len(book) <= addresses.MAX_FOR_ONE_MEMBER


def test_a_peer_within_the_pace_never_waits_and_a_faster_one_waits_for_the_rest() -> None:
    pace = Pace(0.0)
    step_s = 2 / PACE_MESSAGES_PER_S
    assert not any(pace.wait_s(1_000, n * step_s) for n in range(1, 20_000))
    burst = int(PACE_MESSAGES_PER_S * PACE_BURST_S)
    fast = Pace(0.0)
    waits = [fast.wait_s(10, 0.0) for _ in range(2 * burst)]
    assert not any(waits[:burst])
    assert waits[-1] == pytest.approx(burst / PACE_MESSAGES_PER_S)
    large = Pace(0.0)
    assert large.wait_s(int(PACE_BYTES_PER_S * (PACE_BURST_S + 1)), 0.0) == pytest.approx(1.0)


class Listener:
    """Stands for the node: knows the members, hears nothing."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def members(self) -> frozenset[str]:
        return self._names

    def hello(self) -> service_pb2.Hello:
        return service_pb2.Hello(chain_id="c", organization="own")

    def greeting(self) -> Iterator[service_pb2.PeerMessage]:
        return iter(())

    def welcome(self, organization: str) -> None:
        return

    async def receive(self, organization: str, message: service_pb2.PeerMessage) -> None:
        return


def settings(tmp_path: Path, name: str, **more: Any) -> LedgerSettings:
    values = {"federation": "f", "name": name, "state_dir": str(tmp_path / name), "genesis": "", "consensus_key": ""}
    files = {"certificate": "", "private_key": "", "trust_bundle": "", "listen": "127.0.0.1:7"}
    return LedgerSettings(**{**values, **files, "organization": name, **more})


def mesh_of(tmp_path: Path, name: str, edges: dict[str, set[str]]) -> Mesh:
    """A node's mesh as it stands when these members are connected and have said so."""
    mesh = Mesh(settings(tmp_path, name), Listener(edges), SystemClock())
    for other in edges[name]:
        mesh.streams[other] = Stream(other, dialed=True)
        mesh.streams[other].neighbours = frozenset(edges[other])
    return mesh


def passed_on(mesh: Mesh, source: str, origin: str) -> set[str]:
    mesh.relay(source, origin, VOTE)
    return {name for name, stream in mesh.streams.items() if stream.queued}


def test_in_a_full_mesh_nothing_is_passed_on(tmp_path: Path) -> None:
    names = {f"m{n}" for n in range(16)}
    edges = {name: names - {name} for name in names}
    for name in sorted(names)[:3]:
        for source in sorted(edges[name]):
            assert passed_on(mesh_of(tmp_path, name, edges), source, source) == set()


@pytest.mark.parametrize("between", [1, 2, 6])
def test_those_between_two_that_cannot_meet_pass_on_with_few_duplicates(tmp_path: Path, between: int) -> None:
    middle = {f"m{n}" for n in range(between)}
    edges = {name: (middle - {name}) | {"a", "b"} for name in middle} | {"a": set(middle), "b": set(middle)}
    told = [passed_on(mesh_of(tmp_path, name, edges), "a", "a") for name in sorted(middle)]
    assert sum("b" in each for each in told) == min(between, RELAYS)
    assert all(each <= {"b"} for each in told)


def test_along_a_line_everybody_hears_everything(tmp_path: Path) -> None:
    edges = {"a": {"b"}, "b": {"a", "c"}, "c": {"b", "d"}, "d": {"c"}}
    assert passed_on(mesh_of(tmp_path, "b", edges), "a", "a") == {"c"}
    assert passed_on(mesh_of(tmp_path, "c", edges), "b", "a") == {"d"}
    assert passed_on(mesh_of(tmp_path, "d", edges), "c", "a") == set()
    assert passed_on(mesh_of(tmp_path, "c", edges), "b", "c") == set(), "our own comes back to us"


@pytest.mark.parametrize("own", ["alpha", "omega"])
async def test_of_two_streams_dialled_at_once_both_sides_keep_the_same(tmp_path: Path, own: str) -> None:
    peer = "omega" if own == "alpha" else "alpha"
    hello = service_pb2.Hello(organization=peer, session=b"1")
    wanted = own == "alpha"  # the first by name dials
    for ours_first in (True, False):
        mesh = Mesh(settings(tmp_path, own), Listener({own, peer}), SystemClock())
        first, second = Stream(peer, dialed=ours_first), Stream(peer, dialed=not ours_first)
        mesh._join(first, hello)
        if ours_first == wanted:
            with pytest.raises(Conflict) as refused:
                mesh._join(second, hello)
            assert refused.value.code == "already_connected"
        else:
            mesh._join(second, hello)
            assert first.closed.is_set()
        assert mesh.streams[peer].dialed is wanted
    # Another process of the peer: the old stream is dead, whoever dialled it.
    again = Stream(peer, dialed=not wanted)
    mesh._join(again, service_pb2.Hello(organization=peer, session=b"2"))
    assert mesh.streams[peer] is again


async def test_what_waits_for_a_slow_peer_is_bounded() -> None:
    stream = Stream("slow", dialed=True)
    for _ in range(QUEUE_MESSAGES + 10):
        stream.send(VOTE)
    assert stream.queued == QUEUE_MESSAGES
    large = service_pb2.PeerMessage(block=service_pb2.BlockData(block=bytes(1024 * 1024)))
    stream = Stream("slow", dialed=True)
    for _ in range(100):
        stream.send(large)
    assert stream.queued * 1024 * 1024 == QUEUE_BYTES
    stream.close()
    assert [message async for message in stream.outgoing()] == []


async def test_what_waits_together_leaves_together_and_nobody_hurries_for_transactions() -> None:
    stream = Stream("peer", dialed=True)
    txs = service_pb2.PeerMessage(txs=service_pb2.TxBatch(txs=[b"t"]))
    large = service_pb2.PeerMessage(block=service_pb2.BlockData(block=bytes(BUNDLE_BYTES + 1)))
    sent = stream.outgoing()
    loop = asyncio.get_running_loop()
    stream.send(txs)
    assert await anext(sent) == txs  # nothing left just before
    alone = asyncio.ensure_future(anext(sent))
    await asyncio.sleep(0)  # the stream asks for the next as soon as one is written
    began_s = loop.time()
    stream.send(txs)
    assert await alone == txs
    assert loop.time() - began_s > PAUSE_S / 2
    for message in (txs, VOTE, large, VOTE, *[VOTE] * BUNDLE_MESSAGES):
        stream.send(message)
    first, second, third, fourth = [list(unbundled(await anext(sent))) for _ in range(4)]
    assert (first, second, third, fourth) == ([txs, VOTE], [large], [VOTE] * BUNDLE_MESSAGES, [VOTE])
    assert stream.queued == 0


@pytest.mark.parametrize(
    ("messages", "code"), [([b"\x0a\xff"], "malformed"), ([b""] * (BUNDLE_MESSAGES + 1), "too_many_messages")]
)
def test_a_bundle_that_no_peer_makes_is_refused(messages: list[bytes], code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        unbundled(service_pb2.PeerMessage(bundle=service_pb2.Bundle(messages=messages)))
    assert refused.value.code == code


async def test_a_question_has_one_answer_in_time_of_the_right_kind() -> None:
    asks, stream = Asks(), Stream("peer", dialed=True)

    def question() -> service_pb2.Ask:
        return service_pb2.Ask(blocks=service_pb2.BlocksRequest(from_height=1))

    with pytest.raises(Unavailable, match="did not answer about blocks"):
        await asks.ask(stream, question(), 0.01)
    late = service_pb2.Answer(id=1, blocks=service_pb2.BlockBatch())
    asks.answered("peer", late)
    with pytest.raises(InvalidInput, match="nobody asked"):
        asks.answered("peer", service_pb2.Answer(id=99))
    waiting = asyncio.create_task(asks.ask(stream, question(), 5))
    await asyncio.sleep(0)
    asks.answered("other", service_pb2.Answer(id=2, blocks=service_pb2.BlockBatch()))
    assert not waiting.done()
    with pytest.raises(InvalidInput, match="to a question about blocks"):
        asks.answered("peer", service_pb2.Answer(id=2, chunk=service_pb2.Chunk()))
    with pytest.raises(Unavailable):
        await waiting
    waiting = asyncio.create_task(asks.ask(stream, question(), 5))
    await asyncio.sleep(0)
    asks.lost("peer")
    with pytest.raises(Unavailable, match="ended"):
        await waiting
    assert len(asks) == 0


def test_an_endpoint_in_the_settings_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is no host:port"):
        Mesh(settings(tmp_path, "own", peers=(Peer("east", "nowhere"),)), Listener({"own"}), SystemClock())


async def test_who_is_no_member_any_more_is_disconnected_and_forgotten(tmp_path: Path) -> None:
    names = {"own", "east", "west"}
    mesh = mesh_of(tmp_path, "own", {name: names - {name} for name in names})
    mesh.book.hear("west", "west", "west:1")
    mesh.book.hear("east", "east", "east:1")
    mesh._part_from_leavers(frozenset({"own", "east"}))
    assert mesh.streams["west"].closed.is_set()
    assert not mesh.streams["east"].closed.is_set()
    assert mesh.book.choose("west", 10**18) is None
    assert mesh.book.choose("east", 10**18) == "east:1"
