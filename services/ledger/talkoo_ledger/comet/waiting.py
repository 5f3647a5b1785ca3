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
from functools import partial
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
        fresh: dict[bytes, bytes] = {}
        outcomes = [self._ask(data, fresh) for data in txs]
        if fresh and self._rpc.connected:
            self._start(self._give(fresh))
        checks = {each for each in outcomes if isinstance(each, asyncio.Future)}
        if checks:
            await asyncio.wait(checks, timeout=CHECK_TIMEOUT_S)
        for data, each in zip(txs, outcomes, strict=True):
            if isinstance(each, asyncio.Future) and not each.done():
                self._settle(transaction_hash(data), _too_late())
        return [each.result() if isinstance(each, asyncio.Future) else each for each in outcomes]

    def _ask(self, data: bytes, fresh: dict[bytes, bytes]) -> Outcome | asyncio.Future[Outcome]:
        """The outcome, where it is known; else who will bring it. `fresh` gets what CometBFT is to be given."""
        tx_hash = transaction_hash(data)
        if tx_hash in self._own:
            return None
        if tx_hash in self._others:
            self._promise(tx_hash, data)
            return None
        if tx_hash in self._asked:
            return self._asked[tx_hash][1]
        if self._ledger.store.tx_result(tx_hash) is not None:
            return Conflict("the transaction is final already; ask for its result", code="nonce_too_low")
        if len(self._asked) >= MAX_TXS or len(self._own) >= MAX_TXS:
            return _full()
        checked: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        checked.add_done_callback(lambda _: self._asked.pop(tx_hash, None))
        self._asked[tx_hash] = (data, checked)
        fresh[tx_hash] = data
        return checked

    async def _give(self, txs: dict[bytes, bytes]) -> None:
        """To CometBFT's mempool, in order. What breaks off here is given after the next connection."""
        for tx_hash, data in txs.items():
            if tx_hash not in self._own and tx_hash not in self._asked:
                continue
            try:
                answer = await self._rpc.ask("broadcast_tx_async", tx=base64.b64encode(data).decode())
            except Unavailable:
                return
            except TalkooError as error:
                self._settle(tx_hash, error)
            else:
                answer.add_done_callback(partial(self._given, tx_hash))

    def _given(self, tx_hash: bytes, answer: asyncio.Future[Any]) -> None:
        """CometBFT's own refusals (full, too large, known) come at once, those of our check through `checked`."""
        error = None if answer.cancelled() else answer.exception()
        if not isinstance(error, TalkooError) or isinstance(error, Unavailable):
            return
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
        self._start(self._give({**own, **asked}))

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
            self._start(self._give(chosen))

    # --- inside ---

    def _promise(self, tx_hash: bytes, data: bytes) -> None:
        self._others.discard(tx_hash)
        self._own[tx_hash] = _Own(data, self._ledger.chain.last_height)

    def _settle(self, tx_hash: bytes, outcome: Outcome) -> None:
        asked = self._asked.get(tx_hash)
        if asked is not None and not asked[1].done():
            asked[1].set_result(outcome)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Each gives transactions that were asked for or that wait, so their number is bounded with these."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _too_late() -> Unavailable:
    return Unavailable(
        "CometBFT did not take the transaction in time; it may still become final, ask for its result",
        code="engine_unavailable",
    )


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
