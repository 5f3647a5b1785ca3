"""Transactions between ledger nodes: ours go out in batches, those of peers are checked a few at a time.

Consensus comes first: the node's loop calls `check_some` between its batches, so that a flood of transactions delays
no vote by more than the checks of CHECKED_AT_ONCE.
"""

from __future__ import annotations

import asyncio
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
TX_BATCH_BYTES = 1024 * 1024


@dataclass(slots=True)
class _Arrived:
    """A peer's batch and how far it is checked. `done` gives the sender its room back."""

    organization: str
    txs: list[bytes]
    done: Callable[[], None]
    next: int = 0
    new: list[bytes] = field(default_factory=list)


class Gossip:
    """`wake`: the node's loop has something to do. `work`: a transaction waits for a block that did not before."""

    def __init__(self, mempool: Mempool, mesh: Mesh, wake: Callable[[], None], work: Callable[[], None]) -> None:
        self._mempool = mempool
        self._mesh = mesh
        self._wake = wake
        self._work = work
        self._outgoing: list[bytes] = []
        self._sent_at_s = 0.0
        self._arrived: deque[_Arrived] = deque()
        """Bounded by the room of each sender, which is given back when its batch is checked."""

    def broadcast(self, data: bytes) -> bytes:
        """Take a client's transaction and spread it. Raises its typed error. Returns its hash."""
        tx_hash = transaction_hash(data)
        if self._mempool.add(data, tx_hash):
            if not self._outgoing:
                loop = asyncio.get_running_loop()
                crowd = max(1.0, len(self._mesh.streams) / SPREAD_PEERS)
                pause_s = min(SPREAD_EVERY_S * crowd * crowd, SPREAD_AT_LEAST_EVERY_S)
                loop.call_later(max(SPREAD_FIRST_S, self._sent_at_s + pause_s - loop.time()), self._spread)
            self._outgoing.append(data)
            self._work()
        return tx_hash

    def arrived(self, organization: str, txs: list[bytes], done: Callable[[], None]) -> None:
        self._arrived.append(_Arrived(organization, txs, done))
        self._wake()

    def check_some(self) -> bool:
        """Check the next few of the peers' transactions; whether more wait."""
        left = CHECKED_AT_ONCE
        while self._arrived and left:
            batch = self._arrived[0]
            upto = min(batch.next + left, len(batch.txs))
            for data in batch.txs[batch.next : upto]:
                try:
                    if self._mempool.add(data, transaction_hash(data)):
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
        for message in batches(batch.new):
            self._mesh.relay(batch.organization, batch.organization, message)
        if batch.new:
            self._work()

    def _spread(self) -> None:
        self._sent_at_s = asyncio.get_running_loop().time()
        txs, self._outgoing = self._outgoing, []
        for message in batches(txs):
            self._mesh.send_all(message)


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
