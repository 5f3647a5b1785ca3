"""With many members votes go by way of a collector, and transactions by way of a hub: parts, and real nodes."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from talkoo_api.ledger.v1 import service_pb2, tx_pb2
from talkoo_consensus.encoding import block_id_of, encode_vote
from talkoo_consensus.events import StartHeight, VoteReceived
from talkoo_consensus.types import SignedType, Vote
from talkoo_ledger.collecting import DOUBTED_HEIGHTS, WAIT_S, Collecting, OwnVote, PassOn, Unheard
from talkoo_ledger.genesis import Genesis, GenesisAccount, GenesisOrganization, default_params
from talkoo_ledger.gossip import Gossip, draw_hub
from talkoo_ledger.peers import CROWD_PEERS, Mesh
from talkoo_ledger.streams import Stream

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_runtime.clock import SystemClock
from talkoo_runtime.transactions import transaction_hash
from talkoo_sim.consensus_table import Table
from talkoo_sim.ledger_chain import address, key_of
from talkoo_sim.ledger_processes import Ledgers

MEMBERS = CROWD_PEERS + 2
NODES = CROWD_PEERS + 3
PREVOTE, PRECOMMIT = SignedType.PREVOTE, SignedType.PRECOMMIT
LONG_S = 120.0
"""Eleven processes on two cores take so long to start when others use them, too."""


def member(index: int) -> str:
    return f"m{index}"


class Ways:
    """A mesh that writes down who was sent what."""

    def __init__(self, own: str, members: int = MEMBERS) -> None:
        self.own = own
        self.crowded = members > CROWD_PEERS + 1
        self.everybody = {member(index) for index in range(members)} - {own}
        self.apart: set[str] = set()
        self.sent: dict[str, list[bytes]] = defaultdict(list)

    def spreads(self, organization: str) -> bool:
        return organization not in self.apart

    def send(self, organization: str, message: service_pb2.PeerMessage) -> None:
        self.sent[organization].append(message.vote)

    def send_all(self, message: service_pb2.PeerMessage) -> None:
        for name in self.everybody:
            self.send(name, message)

    def pass_on(self, source: str, origin: str, message: service_pb2.PeerMessage) -> None:
        for name in self.everybody - {source, origin}:
            self.send(name, message)


class Seat:
    """Validator `us` of ten, with its driver, as the collecting part of a node sees it."""

    def __init__(self, us: int | None = None) -> None:
        self.table = Table((10,) * MEMBERS)
        self.table.start()
        self.us = self.table.us if us is None else us
        self.ways = Ways(member(self.us))
        self.later: list[tuple[float, PassOn | Unheard]] = []
        self.collecting = Collecting(self.ways, self.table.driver, lambda s, item: self.later.append((s, item)))
        self.value = block_id_of(self.table.block())

    @property
    def proposer(self) -> str:
        return member(self.table.proposer(self.table.driver.round))

    def own(self, type_: SignedType = PREVOTE) -> bytes:
        vote = self.table.vote(self.us, type_, self.value)
        self.collecting.send(OwnVote(vote, self.proposer))
        self.count(vote)
        self.collecting.pass_on_what_is_due()
        return encode_vote(vote)

    def hear(self, indices: Sequence[int], type_: SignedType = PREVOTE) -> list[bytes]:
        """As the node does it with one batch of its inbox."""
        votes = [self.table.vote(index, type_, self.value) for index in indices]
        for index, vote in zip(indices, votes, strict=True):
            message = service_pb2.PeerMessage(vote=encode_vote(vote))
            self.collecting.gather(member(index), member(index), vote, message)
            self.count(vote)
        self.collecting.pass_on_what_is_due()
        return [encode_vote(vote) for vote in votes]

    def count(self, vote: Vote) -> None:
        self.table.driver.step(VoteReceived(vote))


def test_few_members_tell_each_other() -> None:
    seat = Seat()
    seat.ways.crowded = False
    vote = seat.own()
    assert seat.ways.sent == {name: [vote] for name in seat.ways.everybody}
    assert not seat.later


def test_in_a_crowd_a_vote_goes_to_the_proposer_alone() -> None:
    seat = Seat()
    vote = seat.own()
    assert seat.ways.sent == {seat.proposer: [vote]}
    ((wait_s, item),) = seat.later
    assert wait_s == WAIT_S
    assert isinstance(item, Unheard)


def test_a_vote_goes_to_everybody_where_the_collector_does_not_reach_everybody() -> None:
    seat = Seat()
    seat.ways.apart = {seat.proposer}
    vote = seat.own()
    assert seat.ways.sent == {name: [vote] for name in seat.ways.everybody}


def test_the_collector_tells_everybody_once_with_a_quorum_and_once_with_the_rest() -> None:
    seat = Seat(us=Table((10,) * MEMBERS).proposer(0))
    own = seat.own(PRECOMMIT)
    others = [index for index in range(MEMBERS) if index != seat.us]
    first = seat.hear(others[:5], PRECOMMIT)
    assert not seat.ways.sent, "six of ten are no quorum"
    more = seat.hear(others[5:6], PRECOMMIT)
    for index in others:
        mine = (first + more)[others.index(index) : others.index(index) + 1] if index in others[:6] else []
        assert seat.ways.sent[member(index)] == [each for each in [own, *first, *more] if each not in mine]
    seat.ways.sent.clear()
    assert seat.hear(others[6:8], PRECOMMIT)
    assert not seat.ways.sent
    rest = seat.hear(others[8:], PRECOMMIT)
    assert rest[0] in seat.ways.sent[member(others[0])]
    assert len(seat.ways.sent[member(others[0])]) == 3


def test_what_makes_no_quorum_is_passed_on_when_it_has_waited() -> None:
    seat = Seat(us=Table((10,) * MEMBERS).proposer(0))
    others = [index for index in range(MEMBERS) if index != seat.us]
    (vote,) = seat.hear(others[:1])
    assert not seat.ways.sent
    seat.collecting.take(next(item for _, item in seat.later if isinstance(item, PassOn)))
    assert seat.ways.sent == {member(index): [vote] for index in others[1:]}


def test_a_collector_that_does_not_answer_is_passed_by_for_a_while() -> None:
    seat = Seat()
    vote = seat.own()
    ((_, unheard),) = seat.later
    seat.ways.sent.clear()
    seat.collecting.take(unheard)
    assert seat.ways.sent == {name: [vote] for name in seat.ways.everybody}
    seat.ways.sent.clear()
    seat.collecting.take(unheard)
    assert not seat.ways.sent, "once is enough"
    second = seat.own(PRECOMMIT)
    assert seat.ways.sent == {name: [second] for name in seat.ways.everybody}
    seat.ways.sent.clear()
    seat.table.driver.step(StartHeight(1 + DOUBTED_HEIGHTS, seat.table.validators))
    seat.collecting.height_began()
    later = seat.table.vote(seat.us, PREVOTE, seat.value, height=1 + DOUBTED_HEIGHTS)
    seat.collecting.send(OwnVote(later, seat.proposer))
    assert seat.ways.sent == {seat.proposer: [encode_vote(later)]}


def test_a_collector_whose_quorum_has_come_is_not_doubted() -> None:
    seat = Seat()
    seat.own()
    others = [index for index in range(MEMBERS) if index != seat.us]
    for index in others[:7]:
        seat.count(seat.table.vote(index, PREVOTE, seat.value))
    seat.ways.sent.clear()
    seat.collecting.take(seat.later[0][1])
    assert not seat.ways.sent


# -- transactions ------------------------------------------------------------------------------------------------------


class Pool:
    """In place of the mempool: takes everything once."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def add(self, data: bytes, tx_hash: bytes) -> bool:
        return self.held.setdefault(tx_hash, data) is data

    def __contains__(self, tx_hash: bytes) -> bool:
        return tx_hash in self.held


def crowd(tmp_path: Path, own: str, members: int = MEMBERS) -> Mesh:
    names = {member(index) for index in range(members)}
    settings: Any = SimpleNamespace(organization=own, state_dir=str(tmp_path), peers=[], listen="", advertise="")
    settings.outbound_only = True
    mesh = Mesh(settings, cast("Any", None), SystemClock())
    for other in sorted(names - {own}):
        mesh.streams[other] = Stream(other, dialed=True)
        mesh.streams[other].neighbours = frozenset(names - {other})
    return mesh


def queued(mesh: Mesh) -> dict[str, list[service_pb2.TxBatch]]:
    """What waits for each peer, taken away."""
    told = {}
    for name, stream in mesh.streams.items():
        batches = []
        while stream.queued:
            batches.append(stream._pop().txs)
        if batches:
            told[name] = batches
    return told


def gossip_of(mesh: Mesh, pool: Pool) -> Gossip:
    return Gossip(cast("Any", pool), mesh, lambda: 1, lambda: None, lambda: None)


def hub_of(tmp_path: Path) -> str:
    hubs = {gossip_of(crowd(tmp_path, member(index)), Pool())._hub(0.0) or member(index) for index in range(MEMBERS)}
    (hub,) = hubs
    return hub


async def test_all_agree_on_a_hub_and_hand_their_transactions_to_it(tmp_path: Path) -> None:
    hub = hub_of(tmp_path)
    own = next(member(index) for index in range(MEMBERS) if member(index) != hub)
    mesh = crowd(tmp_path, own)
    part = gossip_of(mesh, Pool())
    part.broadcast(b"pay")
    part._spread()
    assert queued(mesh) == {hub: [service_pb2.TxBatch(txs=[b"pay"], pass_on=True)]}
    part._echoed(hub, [transaction_hash(b"pay")])
    part._spread()
    assert queued(mesh) == {name: [service_pb2.TxBatch(txs=[b"pay"])] for name in mesh.streams}, "it was not told"
    part.broadcast(b"again")
    part._spread()
    assert set(queued(mesh)) == set(mesh.streams), "who did not tell is passed by"


async def test_what_the_hub_tells_again_is_told_no_more(tmp_path: Path) -> None:
    hub = hub_of(tmp_path)
    own = next(member(index) for index in range(MEMBERS) if member(index) != hub)
    mesh = crowd(tmp_path, own)
    part = gossip_of(mesh, Pool())
    part.broadcast(b"pay")
    part._spread()
    queued(mesh)
    part.arrived(hub, service_pb2.TxBatch(txs=[b"other", b"pay"]), lambda: None)
    part.check_some()
    part._echoed(hub, [transaction_hash(b"pay")])
    part._spread()
    assert queued(mesh) == {}


async def test_the_hub_tells_everybody_in_one_batch_what_all_have_given_it(tmp_path: Path) -> None:
    hub = hub_of(tmp_path)
    mesh = crowd(tmp_path, hub)
    part = gossip_of(mesh, Pool())
    part.broadcast(b"own")
    for name in sorted(mesh.streams)[:3]:
        part.arrived(name, service_pb2.TxBatch(txs=[name.encode(), b"same"], pass_on=True), lambda: None)
    while part.check_some():
        pass
    part._spread()
    expected = [*(name.encode() for name in sorted(mesh.streams)[:3]), b"same", b"own"]
    for batches in queued(mesh).values():
        (batch,) = batches
        assert sorted(batch.txs) == sorted(expected)
        assert not batch.pass_on


async def test_few_members_hand_nothing_over(tmp_path: Path) -> None:
    mesh = crowd(tmp_path, "m0", members=4)
    part = gossip_of(mesh, Pool())
    part.broadcast(b"pay")
    part._spread()
    assert queued(mesh) == {name: [service_pb2.TxBatch(txs=[b"pay"])] for name in mesh.streams}


# -- real nodes --------------------------------------------------------------------------------------------------------


def genesis() -> Genesis:
    organizations = [
        GenesisOrganization(
            name=member(index),
            owner_key=key_of(member(index)).public.raw.hex(),
            consensus_key=key_of(f"{member(index)}-consensus").public.raw.hex(),
            scheduler_key=key_of(f"{member(index)}-scheduler").public.raw.hex(),
            validator_key=key_of(f"{member(index)}-validator").public.raw.hex(),
            stake_utlk=100 * UTLK_PER_TLK,
            node_keys=[],
        )
        for index in range(NODES)
    ]
    accounts = [GenesisAccount(address(name), 1_000 * UTLK_PER_TLK) for name in ("alice", "bob")]
    return Genesis("crowd-1", 1, default_params(), organizations, accounts)


@pytest.mark.timeout(600)
async def test_a_crowd_goes_on_while_one_member_hangs_and_it_follows_afterwards(tmp_path: Path) -> None:
    """It keeps its connections and says nothing: votes and transactions that went to it go to everybody."""
    ledgers = Ledgers(tmp_path, genesis(), {"empty_block_interval_ms": 500})
    hub = min(ledgers.names, key=lambda name: draw_hub(0, name))
    asked = next(name for name in ledgers.names if name != hub)

    async def together() -> bool:
        stati = [await ledgers.client(name).status() for name in ledgers.names]
        return all(status.height >= 2 and len(status.peers) == NODES - 1 for status in stati)

    async def reached(name: str, height: int) -> None:
        async def there() -> bool:
            return (await ledgers.client(name).status()).height >= height

        await ledgers.eventually(there, f"{name} decides block {height}", LONG_S)

    try:
        ledgers.start()
        await ledgers.eventually(together, "all are connected and decide", LONG_S)
        client = ledgers.client(asked, "alice")
        pay = tx_pb2.Transfer(to=address("bob"), amount_utlk=1)
        first = await client.submit(pay, timeout_s=LONG_S)
        ledgers.processes[hub].send_signal(signal.SIGSTOP)
        second = await client.submit(pay, timeout_s=LONG_S)
        await reached(asked, first.height + NODES)  # every member was to propose meanwhile, this one, too
        ledgers.processes[hub].send_signal(signal.SIGCONT)
        await reached(hub, second.height)
        ours = {raw.height: raw.block for raw in await ledgers.blocks(asked)}
        theirs = {raw.height: raw.block for raw in await ledgers.blocks(hub)}
        assert second.height in theirs
        assert all(ours[height] == theirs[height] for height in ours.keys() & theirs.keys())
    finally:
        await ledgers.close()
