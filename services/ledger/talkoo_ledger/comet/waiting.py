"""Clients' transactions on their way through CometBFT's mempool.

A transaction is given to CometBFT by its RPC; whether it may wait for a block comes back as CometBFT's own CheckTx to
our application. After each block CometBFT checks what it still holds again, so what is not checked again any more is
not there any more: a restart loses its mempool, a full one drops. What our own clients were promised is then given
once more.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from talkoo_core.errors import Conflict, Exhausted, InvalidInput, TalkooError, Unavailable, error_of
from talkoo_ledger.abci.hosted import HostedLedger
from talkoo_ledger.application import CheckResult
from talkoo_ledger.comet.rpc import CometRpc
from talkoo_ledger.mempool import MAX_TXS
from talkoo_runtime.transactions import transaction_hash

log = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 10.0
"""How long a client waits for CometBFT's check, a restart of CometBFT included."""
MISSED_BLOCKS = 3
"""A transaction that was not checked again after so many blocks is not in CometBFT's mempool."""
GIVEN_AGAIN_AT_ONCE = 64
IN_CACHE = "tx already exists in cache"

Outcome: TypeAlias = TalkooError | None
"""None: taken."""


@dataclass(slots=True)
class _Own:
    """A transaction of our own clients that waits; `seen_height`: the last block when CometBFT still had it."""

    data: bytes
    seen_height: int


class Waiting:
    """What waits under CometBFT. `rpc` is the connection that carries transactions, and nothing else."""

    def __init__(self, ledger: HostedLedger, rpc: CometRpc) -> None:
        self._ledger = ledger
        self._rpc = rpc
        self._asked: dict[bytes, tuple[bytes, asyncio.Future[Outcome]]] = {}
        """Not checked yet: bytes, and who waits for the check. At most MAX_TXS."""
        self._own: dict[bytes, _Own] = {}
        """At most MAX_TXS."""
        self._others: set[bytes] = set()
        """Of other nodes' clients, since the last block: CometBFT's mempool is their bound."""
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._own) + len(self._others)

    def __contains__(self, tx_hash: bytes) -> bool:
        return tx_hash in self._own or tx_hash in self._others

    async def submit(self, txs: Sequence[bytes]) -> list[Outcome]:
        """In order; each outcome comes when CometBFT has asked our application about it."""
        return list(await asyncio.gather(*(self._submit(data) for data in txs)))

    async def _submit(self, data: bytes) -> Outcome:
        tx_hash = transaction_hash(data)
        if tx_hash in self._own:
            return None
        if tx_hash in self._others:
            self._promise(tx_hash, data)
            return None
        if self._ledger.store.tx_result(tx_hash) is not None:
            return Conflict("the transaction is final already; ask for its result", code="nonce_too_low")
        asked = self._asked.get(tx_hash)
        if asked is None:
            if len(self._asked) >= MAX_TXS or len(self._own) >= MAX_TXS:
                return _full()
            asked = self._asked[tx_hash] = (data, asyncio.get_running_loop().create_future())
            asked[1].add_done_callback(lambda _: self._asked.pop(tx_hash, None))
            if self._rpc.connected:
                self._start(self._give(tx_hash, data))
        try:
            return await asyncio.wait_for(asyncio.shield(asked[1]), CHECK_TIMEOUT_S)
        except TimeoutError:
            self._settle(
                tx_hash,
                Unavailable(
                    "CometBFT did not take the transaction in time; it may still become final, ask for its result",
                    code="engine_unavailable",
                ),
            )
            return asked[1].result()

    async def _give(self, tx_hash: bytes, data: bytes) -> None:
        """To CometBFT's mempool. Its own refusals (full, too large, known) come at once, ours through `checked`."""
        try:
            await self._rpc.call("broadcast_tx_async", tx=base64.b64encode(data).decode())
        except Unavailable:
            return  # it is given again after the next connection
        except TalkooError as error:
            if IN_CACHE not in error.message:
                self._settle(tx_hash, _engines_refusal(error))
            elif tx_hash in self:
                self._settle(tx_hash, None)
            # Else another node gave it, too, and its check is on the way.

    def connected(self) -> None:
        """CometBFT is up: give it what it may have forgotten, in the order in which it came."""
        own = {tx_hash: own.data for tx_hash, own in self._own.items()}
        asked = {tx_hash: data for tx_hash, (data, _) in self._asked.items()}
        self._others.clear()
        self._start(self._give_all({**own, **asked}))

    async def _give_all(self, txs: dict[bytes, bytes]) -> None:
        for tx_hash, data in txs.items():
            if self._rpc.connected and (tx_hash in self._own or tx_hash in self._asked):
                await self._give(tx_hash, data)

    # --- told by the ABCI requests ---

    def checked(self, data: bytes, result: CheckResult, *, again: bool) -> None:
        tx_hash = result.hash
        own = self._own.get(tx_hash)
        if result.code:
            if self._own.pop(tx_hash, None) is not None and again:
                log.info("a transaction that waited was dropped: %s", result.message)
            self._others.discard(tx_hash)
            self._settle(tx_hash, error_of(result.family, result.message, result.error_code))
            return
        if own is not None:
            own.seen_height = self._ledger.chain.last_height
        elif tx_hash in self._asked:
            self._promise(tx_hash, data)
        else:
            self._others.add(tx_hash)
        self._settle(tx_hash, None)

    def committed(self, hashes: Sequence[bytes]) -> None:
        """After each block; what still waits is checked again right after."""
        self._others.clear()
        for tx_hash in hashes:
            self._own.pop(tx_hash, None)
            self._settle(tx_hash, None)
        oldest = self._ledger.chain.last_height - MISSED_BLOCKS
        lost = {tx_hash: own.data for tx_hash, own in self._own.items() if own.seen_height < oldest}
        if lost and self._rpc.connected:
            chosen = dict(list(lost.items())[:GIVEN_AGAIN_AT_ONCE])
            for tx_hash in chosen:
                self._own[tx_hash].seen_height = self._ledger.chain.last_height
            self._start(self._give_all(chosen))

    # --- inside ---

    def _promise(self, tx_hash: bytes, data: bytes) -> None:
        self._others.discard(tx_hash)
        self._own[tx_hash] = _Own(data, self._ledger.chain.last_height)

    def _settle(self, tx_hash: bytes, outcome: Outcome) -> None:
        asked = self._asked.get(tx_hash)
        if asked is not None and not asked[1].done():
            asked[1].set_result(outcome)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Each gives one asked transaction or some that are known, so their number is bounded with these."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _full() -> Exhausted:
    return Exhausted("too many transactions wait for a block; send it again in a moment", code="mempool_full")


def _engines_refusal(error: TalkooError) -> TalkooError:
    """CometBFT's own reasons not to take a transaction."""
    words = error.message.lower()
    if error.code != "engine_refused":
        return error
    if "mempool is full" in words:
        return _full()
    if "too large" in words or "too big" in words:
        return Exhausted(f"the transaction is too large for CometBFT: {error.message}", code="tx_too_large")
    if "catching up" in words:
        return Unavailable("this node is still catching up; try again in a moment", code="catching_up")
    return InvalidInput(f"CometBFT refused the transaction: {error.message}", code="engine_refused")
