"""Transactions between ledger nodes: ours go out in batches, those of peers are checked a few at a time.

In a crowd (`Mesh.crowded`) each node hands its batches to one member, the hub, which tells everybody what all have
handed to it: with sixteen members small batches from each to each are most messages there are. The hub is another one
every HUB_HEIGHTS heights. It tells the giver, too: whoever does not hear its own transactions again tells everybody.

Consensus comes first: the node's loop calls `check_some` between its batches, so that a flood of transactions delays
no vote by more than the checks of CHECKED_AT_ONCE.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.errors import TalkooError
from talkoo_ledger.mempool import Mempool
from talkoo_ledger.peers import Mesh
from talkoo_runtime.transactions import transaction_hash

log = logging.getLogger(__name__)

CHECKED_AT_ONCE = 32
SPREAD_FIRST_S = 0.005
"""The first transaction after a pause waits so long for company."""
SPREAD_EVERY_S = 0.05
"""Batches follow each other no sooner: under load they grow instead of multiplying."""
SPREAD_PEERS = 4
"""With more peers the pause grows with their square, so that a node has no more to send and to read."""
SPREAD_AT_LEAST_EVERY_S = 1.0
HAND_EVERY_S = 0.25
"""Batches to the hub follow each other no sooner."""
HUB_HEIGHTS = 64
ECHO_S = 5.0
"""In which the hub should have told what was handed to it."""
DOUBTED_S = 60.0
"""For so long a hub that did not is passed by."""
TX_BATCH_BYTES = 1024 * 1024


@dataclass(slots=True)
class _Arrived:
    """A peer's batch and how far it is checked. `done` gives the sender its room back."""

    organization: str
    txs: list[bytes]
    pass_on: bool
    done: Callable[[], None]
    next: int = 0
    new: list[bytes] = field(default_factory=list)


class Gossip:
    """`wake`: the node's loop has something to do. `work`: a transaction waits for a block that did not before.

    `height`: of consensus.
    """

    def __init__(
        self,
        mempool: Mempool,
        mesh: Mesh,
        height: Callable[[], int],
        wake: Callable[[], None],
        work: Callable[[], None],
    ) -> None:
        self._mempool = mempool
        self._mesh = mesh
        self._height = height
        self._wake = wake
        self._work = work
        self._outgoing: list[bytes] = []
        """Of our clients."""
        self._given: list[bytes] = []
        """Of peers to whom we are the hub."""
        self._sent_at_s = 0.0
        self._spreads_soon = False
        self._handed: dict[bytes, bytes] = {}
        """What a hub has and has not told yet, by hash; forgotten after ECHO_S."""
        self._doubted: dict[str, float] = {}
        """Hubs and until when they are passed by; no more than there are members."""
        self._arrived: deque[_Arrived] = deque()
        """Bounded by the room of each sender, which is given back when its batch is checked."""

    def broadcast(self, data: bytes) -> bytes:
        """Take a client's transaction and spread it. Raises its typed error. Returns its hash."""
        tx_hash = transaction_hash(data)
        if self._mempool.add(data, tx_hash):
            self._outgoing.append(data)
            self._spread_soon()
            self._work()
        return tx_hash

    def arrived(self, organization: str, batch: service_pb2.TxBatch, done: Callable[[], None]) -> None:
        self._arrived.append(_Arrived(organization, list(batch.txs), batch.pass_on, done))
        self._wake()

    def check_some(self) -> bool:
        """Check the next few of the peers' transactions; whether more wait."""
        left = CHECKED_AT_ONCE
        while self._arrived and left:
            batch = self._arrived[0]
            upto = min(batch.next + left, len(batch.txs))
            for data in batch.txs[batch.next : upto]:
                tx_hash = transaction_hash(data)
                self._handed.pop(tx_hash, None)
                try:
                    if self._mempool.add(data, tx_hash):
                        batch.new.append(data)
                except TalkooError as error:
                    log.debug("a peer's transaction was refused: %s", error)
            left -= max(upto - batch.next, 1)
            batch.next = upto
            if upto == len(batch.txs):
                self._arrived.popleft()
                self._checked(batch)
        return bool(self._arrived)

    def _checked(self, batch: _Arrived) -> None:
        batch.done()
        if batch.pass_on:
            self._given += batch.new
            self._spread_soon()
        else:
            for message in batches(batch.new):
                self._mesh.relay(batch.organization, batch.organization, message)
        if batch.new:
            self._work()

    def _spread_soon(self) -> None:
        if self._spreads_soon or not (self._outgoing or self._given):
            return
        self._spreads_soon = True
        loop = asyncio.get_running_loop()
        crowd = max(1.0, len(self._mesh.streams) / SPREAD_PEERS)
        pause_s = min(SPREAD_EVERY_S * crowd * crowd, SPREAD_AT_LEAST_EVERY_S)
        if not self._given and self._hub(loop.time()):
            pause_s = HAND_EVERY_S
        loop.call_later(max(SPREAD_FIRST_S, self._sent_at_s + pause_s - loop.time()), self._spread)

    def _spread(self) -> None:
        loop = asyncio.get_running_loop()
        self._spreads_soon, self._sent_at_s = False, loop.time()
        hub = self._hub(loop.time()) if self._outgoing else ""
        if hub:
            self._hand(hub)
        txs, self._outgoing, self._given = self._given + self._outgoing, [], []
        for message in batches(txs):
            self._mesh.send_all(message)

    def _hand(self, hub: str) -> None:
        txs, self._outgoing = self._outgoing, []
        for message in batches(txs):
            message.txs.pass_on = True
            self._mesh.send(hub, message)
        handed = {transaction_hash(data): data for data in txs}
        self._handed |= handed
        asyncio.get_running_loop().call_later(ECHO_S, self._echoed, hub, tuple(handed))

    def _echoed(self, hub: str, hashes: Iterable[bytes]) -> None:
        """What the hub has not told by now, and what still waits for a block, is told to everybody."""
        untold = [self._handed.pop(each) for each in hashes if each in self._handed and each in self._mempool]
        for each in hashes:
            self._handed.pop(each, None)
        if untold:
            log.debug("%s did not pass on %d transactions", hub, len(untold))
            self._doubted[hub] = asyncio.get_running_loop().time() + DOUBTED_S
            self._outgoing[:0] = untold
            self._spread_soon()

    def _hub(self, now_s: float) -> str:
        """The same for all members that are connected with each other. "": tell everybody ourselves."""
        if not self._mesh.crowded:
            return ""
        term = self._height() // HUB_HEIGHTS
        names = (self._mesh.own, *self._mesh.streams)
        hub = min(names, key=lambda name: draw_hub(term, name))
        doubted = self._doubted.get(hub, 0.0) > now_s
        return "" if hub == self._mesh.own or doubted or not self._mesh.spreads(hub) else hub


def draw_hub(term: int, name: str) -> bytes:
    """Rendezvous hashing: the lowest is the hub of the term, for all who know the same members."""
    return hashlib.sha256(f"{term}\n{name}".encode()).digest()


def batches(txs: Iterable[bytes]) -> Iterator[service_pb2.PeerMessage]:
    """Transactions in their order, in messages that peers take."""
    batch: list[bytes] = []
    size = 0
    for data in txs:
        if batch and size + len(data) > TX_BATCH_BYTES:
            yield service_pb2.PeerMessage(txs=service_pb2.TxBatch(txs=batch))
            batch, size = [], 0
        batch.append(data)
        size += len(data)
    if batch:
        yield service_pb2.PeerMessage(txs=service_pb2.TxBatch(txs=batch))
