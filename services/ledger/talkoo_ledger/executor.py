"""Decided blocks become state: applied by the application, stored in one transaction, told to whoever follows."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from talkoo_api.ledger.v1 import service_pb2, state_pb2
from talkoo_consensus.chain import ChainState, advance, genesis_state
from talkoo_consensus.encoding import decode_block, decode_commit, encode_block, encode_commit
from talkoo_consensus.evidence import EvidenceParams, EvidencePool, PastHeight
from talkoo_consensus.types import EMPTY_COMMIT, Block, BlockId, Commit, DuplicateVoteEvidence, TxResult, Vote
from talkoo_consensus.validators import Validator

from talkoo_core.errors import Corrupt, InvalidInput
from talkoo_ledger.application import Application, FinalizeRequest, FinalizeResponse
from talkoo_ledger.genesis import Genesis
from talkoo_ledger.metrics import count_block, count_votes
from talkoo_ledger.misbehavior import proven_by
from talkoo_ledger.store import BlockStore, StoredBlock
from talkoo_ledger.transcripts import encode_transcript
from talkoo_ledger.wire import event_proto, tx_result_proto
from talkoo_runtime.clock import Clock
from talkoo_runtime.telemetry import record

log = logging.getLogger(__name__)


def begin_chain(application: Application, genesis: Genesis) -> ChainState:
    """Give a new application the state of genesis; the chain before its first block."""
    app_hash = application.init_chain(genesis)
    validators = [
        Validator.of(organization.validator_key, organization.power)
        for organization in application.state.organizations.all()
        if organization.power > 0
    ]
    return genesis_state(genesis.chain_id, genesis.genesis_time_ns, validators, app_hash)


class Executor:
    """Owns the application, the store and the chain's state. Opening it restores all three, or begins with genesis.

    `retain_blocks`: how many of the newest blocks the store keeps; 0: all. Raises InvalidInput where that is fewer than
    evidence and unbonding look back, Corrupt when the stored state is not what the chain says, or of another genesis.
    """

    def __init__(
        self, genesis: Genesis, folder: Path, clock: Clock, retain_blocks: int = 0, index_events: bool = False
    ) -> None:
        least = genesis.params["unbonding_blocks"] + 1
        if 0 < retain_blocks < least:
            raise InvalidInput(
                f"retain_blocks is {retain_blocks}; this chain looks back {least} blocks: set that or more, or 0",
                code="bad_setting",
            )
        self._retain_blocks = retain_blocks
        self.genesis = genesis
        self.genesis_sha256 = genesis.sha256()
        self.application = Application()
        self.store = BlockStore(folder / "ledger.db", index_events)
        self.more_work = False
        self._clock = clock
        self._decided = asyncio.Event()
        self.evidence = EvidencePool(EvidenceParams.within_unbonding(genesis.params["unbonding_blocks"]), self._past)
        self.evidence_found: tuple[DuplicateVoteEvidence, ...] = ()
        """New to this node with the last block; the peers are to be told."""
        self._deciding: Block | None = None
        kept = self.store.evidence()
        if kept is not None:
            self.evidence.restore(kept)
        stored = self.store.chain()
        self.chain = self._begin() if stored is None else self._restore(stored)

    @property
    def max_block_bytes(self) -> int:
        return self.genesis.params["max_block_bytes"]

    def last_commit(self) -> Commit:
        raw = self.store.commit(self.chain.last_height)
        return EMPTY_COMMIT if raw is None else decode_commit(raw)

    def _begin(self) -> ChainState:
        chain = begin_chain(self.application, self.genesis)
        self.store.begin_chain(self.application.snapshot(), chain)
        return chain

    def _restore(self, chain: ChainState) -> ChainState:
        if chain.chain_id != self.genesis.chain_id:
            raise Corrupt(
                f"the stored chain is {chain.chain_id!r}, the genesis file says {self.genesis.chain_id!r}; "
                "give the node the genesis file of its chain, or a new state folder",
                code="wrong_genesis",
            )
        self.application.load(self.store.entries(), chain.last_height, chain.app_hash)
        return chain

    def execute(
        self, round_: int, block_id: BlockId, block: Block, commit: Commit, votes: Sequence[Vote] = ()
    ) -> list[bytes]:
        """Apply and store one decided block; returns the hashes of its transactions.

        `votes`: of its height, where they may be asked for later (`Driver.transcript`).
        Raises Exhausted or Corrupt when it cannot be stored: the node must stop, and starts again a block before.
        """
        began = self._clock.now_ns()
        request = FinalizeRequest(
            block.header.height,
            block_id.hash,
            block.header.time_ns,
            block.header.proposer_address,
            block.data.txs,
            proven_by(block),
        )
        response = self.application.finalize_block(request)
        changes = self.application.commit()
        results = [TxResult(code=result.code) for result in response.tx_results]
        updates = [Validator.of(update.public_key, update.power) for update in response.validator_updates]
        chain = advance(self.chain, block, block_id, results, response.app_hash, updates)
        stored = self._stored(request, response, encode_block(block), encode_commit(commit), round_)
        stored = replace(
            stored, evidence=self._evidence_after(block, chain), transcript=encode_transcript(votes) if votes else None
        )
        keep_from = chain.last_height - self._retain_blocks + 1 if self._retain_blocks else 0
        self.store.save(stored, changes, chain, keep_from)
        count_votes(block.last_commit, self.chain.last_validators, self.application.organization_of)
        count_block(stored, self.chain.last_time_ns, self._clock.now_ns() - began)
        self.chain = chain
        self.more_work = response.more_work
        self._tell_followers()
        self._trace(stored.events, began)
        return [hashlib.sha256(data).digest() for data in block.data.txs]

    def _evidence_after(self, block: Block, chain: ChainState) -> bytes | None:
        """What the store has to keep of the pool, None when that has not changed."""
        self._deciding = block
        self.evidence_found = self.evidence.after_block(chain, block)
        self._deciding = None
        if not self.evidence.changed:
            return None
        self.evidence.changed = False
        return self.evidence.encoded()

    def _past(self, height: int) -> PastHeight | None:
        """A decided height as evidence needs it; None where it is not held any more, or never was."""
        if self._deciding is not None and height == self._deciding.header.height:
            return PastHeight(self._deciding.header.time_ns, self.chain.validators)
        decided, validators = self.store.decided(height), self.store.validators(height)
        if decided is None or validators is None:
            return None
        return PastHeight(decode_block(decided[0]).header.time_ns, validators)

    def adopt(self, entries: Sequence[tuple[str, str, bytes]], chain: ChainState, commit: Commit) -> None:
        """Go on behind a verified snapshot. Raises Corrupt where the entries are not what the chain's root says."""
        self.application.load(entries, chain.last_height, chain.app_hash)
        self.store.replace_state(entries, chain, encode_commit(commit))
        self.chain = chain
        self._tell_followers()

    def _stored(
        self, request: FinalizeRequest, response: FinalizeResponse, block: bytes, commit: bytes, round_: int
    ) -> StoredBlock:
        told = [event_proto(event) for event in response.all_events()]
        events = service_pb2.BlockEvents(
            height=request.height,
            time_ns=request.time_ns,
            hash=request.hash,
            proposer=self.application.organization_of(request.proposer_address),
            txs=len(request.txs),
            events=told,
            size_bytes=len(block) or sum(map(len, request.txs)),  # another engine's block is not here
            app_hash=response.app_hash,
            round=round_,
        )
        results, next_event = [], response.begin_events
        for place, result in enumerate(response.tx_results):
            behind = next_event + len(result.events)
            results.append(tx_result_proto(result, request.height, place, told[next_event:behind]))
            next_event = behind
        return StoredBlock(request.height, block, commit, tuple(results), events, self.application.module_roots())

    async def decided(self) -> None:
        """Wait for the next block."""
        await self._decided.wait()

    def _tell_followers(self) -> None:
        waiting, self._decided = self._decided, asyncio.Event()
        waiting.set()

    def _trace(self, events: service_pb2.BlockEvents, began_ns: int) -> None:
        """A span for the block in the trace of each task it concerns, and one for each of the task's payments."""
        now = self._clock.now_ns()
        traces: dict[str, str] = {}
        for event in events.events:
            task_id = event.subject if event.subject.startswith("task-") else ""
            if event.type == "payment":
                task_id = self._task_of_payment(event.attributes)
            if not task_id:
                continue
            if task_id not in traces:
                traces[task_id] = self._trace_of(task_id)
                if traces[task_id]:
                    record("block.finalize", began_ns, now, parent=traces[task_id], task=task_id, height=events.height)
            if event.type == "payment" and traces[task_id]:
                attributes = {a.key: a.value for a in event.attributes}
                record("payment", began_ns, now, parent=traces[task_id], task=task_id, **attributes)

    def _task_of_payment(self, attributes: Sequence[service_pb2.Attribute]) -> str:
        number = next(a.value for a in attributes if a.key == "number")
        value = self.application.query("payments", f"{int(number):012d}").value
        return "" if value is None else state_pb2.Payment.FromString(value).task_id

    def _trace_of(self, task_id: str) -> str:
        value = self.application.query("tasks", task_id).value
        return "" if value is None else state_pb2.Task.FromString(value).trace
