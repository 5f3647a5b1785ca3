"""The ledger under an engine outside of this process, which keeps the blocks and decides on validators itself.

What `Executor.execute` does at once comes here in ABCI's two steps: `finalize` changes nothing that lasts, `commit`
makes results, events and state durable in one transaction before it returns. So after any crash `application.info()`
is the last committed height, and the engine gives us every block behind it again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from talkoo_consensus.encoding import results_hash
from talkoo_consensus.types import NIL_BLOCK_ID, BlockId, TxResult
from talkoo_consensus.validators import Validator, ValidatorSet

from talkoo_core.errors import Corrupt
from talkoo_ledger.application import FinalizeRequest, FinalizeResponse
from talkoo_ledger.executor import Executor
from talkoo_ledger.metrics import count_block
from talkoo_ledger.snapshots import Entry

log = logging.getLogger(__name__)

NO_VALIDATORS = ValidatorSet(())
"""After a restore: the engine knows them, we were not told."""


@dataclass(frozen=True, slots=True)
class _Finalized:
    request: FinalizeRequest
    response: FinalizeResponse
    began_ns: int


class HostedLedger(Executor):
    """Stored blocks have neither block nor commit bytes: those are asked of the engine."""

    _finalized: _Finalized | None = None

    def finalize(self, request: FinalizeRequest) -> FinalizeResponse:
        """Apply the next block; may be repeated until it is committed. Raises Corrupt (`wrong_height`)."""
        if request.height != self.chain.height:
            raise Corrupt(
                f"the engine gave block {request.height}, this ledger waits for {self.chain.height}; was one of the "
                "two restored from a backup? Restore both, or join anew from a snapshot",
                code="wrong_height",
            )
        began = self._clock.now_ns()
        response = self.application.finalize_block(request)
        self._finalized = _Finalized(request, response, began)
        return response

    def commit(self) -> list[bytes]:
        """Make the finalized block last; returns the hashes of its transactions. Raises Exhausted, Corrupt."""
        finalized, self._finalized = self._finalized, None
        assert finalized is not None, "finalize comes before commit"
        request, response = finalized.request, finalized.response
        changes = self.application.commit()
        updates = [Validator.of(update.public_key, update.power) for update in response.validator_updates]
        after = self.chain.next_validators
        chain = replace(
            self.chain,
            last_height=request.height,
            last_block_id=BlockId(request.hash),
            last_time_ns=request.time_ns,
            last_validators=self.chain.validators,
            validators=after,
            next_validators=after.next_height(updates) if len(after) else after,
            app_hash=response.app_hash,
            last_results_hash=results_hash([TxResult(code=result.code) for result in response.tx_results]),
        )
        stored = self._stored(request, response, b"", b"", 0)
        self.store.save(stored, changes, chain, self.keep_from(request.height))
        count_block(stored, self.chain.last_time_ns, self._clock.now_ns() - finalized.began_ns)
        self.chain = chain
        self._tell_followers()
        self._trace(stored.events, finalized.began_ns)
        return [hashlib.sha256(data).digest() for data in request.txs]

    @property
    def untouched(self) -> bool:
        """Whether the engine has decided nothing here yet: the chain is new, or our own engine decided it so far."""
        last = self.chain.last_height
        decided = self.store.decided(last)
        return last == 0 or (decided is not None and bool(decided[0]))

    def keep_from(self, height: int) -> int:
        """The lowest block that is kept when `height` is the last one; 0: all."""
        return max(height - self._retain_blocks + 1, 0) if self._retain_blocks else 0

    @property
    def takes_snapshot(self) -> bool:
        """While no block was applied: also when one was restored, and the engine was killed before it knew."""
        return self.store.base() == 0

    def restore(self, entries: Iterable[Entry], height: int, app_hash: bytes) -> None:
        """Begin from a snapshot instead of genesis. Raises Corrupt (`state_mismatch`): nothing has changed then."""
        assert self.takes_snapshot, f"a ledger at block {self.chain.last_height} takes no snapshot"
        taken, before = list(entries), list(self.application.snapshot())
        try:
            self.application.load(taken, height, app_hash)
        except Corrupt:
            self.application.load(before, self.chain.last_height, self.chain.app_hash)
            raise
        chain = replace(
            self.chain,
            last_height=height,
            last_block_id=NIL_BLOCK_ID,
            last_validators=NO_VALIDATORS,
            validators=NO_VALIDATORS,
            next_validators=NO_VALIDATORS,
            app_hash=app_hash,
        )
        self.store.replace_state(taken, chain)
        self.chain = chain
        self._tell_followers()
        log.info("the state of block %d was restored from a snapshot of %d entries", height, len(taken))
