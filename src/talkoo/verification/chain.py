"""The chain from the local genesis on: links, signatures, and the state that each next header must name.

Nothing a service says is believed. Each block is decoded from CometBFT's bytes, must follow the one before it, must
carry precommits of more than two thirds of the power of its height, and is applied by the same pure application that
the ledger nodes run; the root of the resulting state has to stand in the next header, signed by the members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from talkoo_api.ledger.v1 import service_pb2, state_pb2, tx_pb2
from talkoo_consensus import chain as consensus_chain
from talkoo_consensus.encoding import block_id_of, decode_block, decode_commit
from talkoo_consensus.evidence import PastHeight, verify_evidence
from talkoo_consensus.types import Block, DuplicateVoteEvidence, TxResult
from talkoo_consensus.validators import Validator
from talkoo_consensus.verify import verify_commit
from talkoo_ledger.application import Application, FinalizeRequest, FinalizeResponse
from talkoo_ledger.context import Event
from talkoo_ledger.genesis import parse_genesis
from talkoo_ledger.misbehavior import proven_by
from talkoo_ledger.transition import TxResult as AppliedTx
from talkoo_ledger.transition import holdings

from talkoo.verification.evidence import Evidence, SeenTx, SegmentKey, Slash
from talkoo.verification.report import Tally
from talkoo_core.errors import InvalidInput, TalkooError

STAKE_KINDS = ("bond", "unbond", "register_node")
"""Transactions that change a stake."""
HEIGHTS_KEPT_FACTOR = 4


class ChainBroken(Exception):
    """The chain does not verify; the tally that failed says where."""


class Replay:
    """Feed it raw blocks from height 1 on; what concerns the task collects in `evidence`."""

    def __init__(self, genesis_json: str, task_id: str) -> None:
        genesis = parse_genesis(genesis_json.encode())
        self.blocks = Tally("blocks", "blocks follow each other from the local genesis")
        self.commits = Tally("signatures", "blocks carry the signatures of more than 2/3 of the voting power")
        self.state = Tally("state", "state roots are what the replay of the transactions gives")
        self.transactions = Tally("transactions", "signed transactions replayed")
        self.evidence = Evidence(task=state_pb2.Task(), params=state_pb2.Params())
        self.genesis_sha256 = genesis.sha256()
        self._task_id = task_id
        self._application = Application()
        app_hash = self._application.init_chain(genesis)
        validators = [
            Validator.of(bytes.fromhex(organization.consensus_key), organization.stake_utlk)
            for organization in genesis.organizations
            if organization.stake_utlk > 0
        ]
        self._chain = consensus_chain.genesis_state(genesis.chain_id, genesis.genesis_time_ns, validators, app_hash)
        self._past: dict[int, PastHeight] = {}
        """The heights that double votes may be about: those of one unbonding period, and some more."""
        self._most_past = HEIGHTS_KEPT_FACTOR * max(genesis.params["unbonding_blocks"], 1)

    @property
    def tallies(self) -> tuple[Tally, ...]:
        return self.blocks, self.commits, self.state, self.transactions

    def feed(self, raw: service_pb2.RawBlock) -> None:
        """Verify and apply the next block. Raises ChainBroken after noting what is wrong."""
        height = self._chain.height
        block = self._block(raw, height)
        self._commit(raw, block, height)
        request = FinalizeRequest(
            height=height,
            hash=block_id_of(block).hash,
            time_ns=block.header.time_ns,
            proposer_address=block.header.proposer_address,
            txs=block.data.txs,
            misbehavior=proven_by(block),
        )
        try:
            response = self._application.finalize_block(request)
        except TalkooError as error:
            raise self._broken(self.state, f"block {height} cannot be applied: {error}") from error
        decided = self._collect(request, response)
        self._apply()
        for key in decided:
            self.evidence.powers[key] = {each.name: each.power for each in self._application.state.organizations.all()}
        self._past[height] = PastHeight(block.header.time_ns, self._chain.validators)
        self._past.pop(height - self._most_past, None)
        self._chain = consensus_chain.advance(
            self._chain,
            block,
            block_id_of(block),
            [TxResult(code=result.code) for result in response.tx_results],
            response.app_hash,
            [Validator.of(update.public_key, update.power) for update in response.validator_updates],
        )

    def finish(self) -> Evidence:
        """The evidence as of the last block."""
        evidence = self.evidence
        state = self._application.state
        evidence.height = self._application.info().height
        evidence.task.ParseFromString(self._value("tasks", self._task_id))
        evidence.params.ParseFromString(self._value("params", "params"))
        evidence.supply.ParseFromString(self._value("supply", "supply"))
        evidence.verdict_accounts = {each.name: each.validator for each in state.organizations.all()}
        if evidence.task.model_version:
            model, _, number = evidence.task.model_version.partition("@")
            evidence.model = state_pb2.ModelVersion.FromString(self._value("models", f"{model}@{int(number):06d}"))
        totals = [0, 0, 0, 0]
        for module in state.MODULES:
            for record in state.table(module).all():
                totals = [total + part for total, part in zip(totals, holdings(record), strict=True)]
        accounts, stake, escrow, unbonding = totals
        evidence.holdings = state_pb2.Supply(
            accounts_utlk=accounts, stake_utlk=stake, escrow_utlk=escrow, unbonding_utlk=unbonding
        )
        return evidence

    # -- one block ---------------------------------------------------------------------------------------------------

    def _block(self, raw: service_pb2.RawBlock, height: int) -> Block:
        try:
            block = decode_block(raw.block)
        except TalkooError as error:
            raise self._broken(self.blocks, f"block {height} cannot be read: {error}") from error
        if block.header.app_hash != self._chain.app_hash and block.header.height == height:
            raise self._broken(
                self.state,
                f"block {height} names the state {block.header.app_hash.hex()[:16]}, the replay up to it gives "
                f"{self._chain.app_hash.hex()[:16]}",
            )
        try:
            consensus_chain.check_block(self._chain, block, self._check_double_votes)
        except TalkooError as error:
            raise self._broken(self.blocks, f"block {height}: {error}") from error
        self.blocks.expect(True, "")
        self.state.expect(True, "")
        return block

    def _check_double_votes(self, chain: consensus_chain.ChainState, evidence: Sequence[DuplicateVoteEvidence]) -> None:
        """Raises InvalidInput (code `bad_evidence`) where a validator is accused of what it has not signed."""
        for piece in evidence:
            past = self._past.get(piece.height)
            if past is None:
                raise InvalidInput(f"it holds double votes of height {piece.height}, too long ago", code="bad_evidence")
            verify_evidence(piece, chain.chain_id, past)

    def _commit(self, raw: service_pb2.RawBlock, block: Block, height: int) -> None:
        try:
            commit = decode_commit(raw.commit)
            verify_commit(self._chain.chain_id, self._chain.validators, block_id_of(block), height, commit)
        except TalkooError as error:
            raise self._broken(self.commits, f"block {height}: {error}") from error
        self.commits.expect(True, "")

    def _broken(self, tally: Tally, problem: str) -> ChainBroken:
        tally.expect(False, problem)
        return ChainBroken(problem)

    def _value(self, module: str, key: str) -> bytes:
        return self._application.query(module, key).value or b""

    # -- what concerns the task --------------------------------------------------------------------------------------

    def _collect(self, request: FinalizeRequest, response: FinalizeResponse) -> list[SegmentKey]:
        """Before the commit: the application's state is still the one before this block. Returns what was decided."""
        evidence = self.evidence
        evidence.block_hashes[request.height] = request.hash
        for raw, result in zip(request.txs, response.tx_results, strict=True):
            self.transactions.expect(True, "")
            self._collect_tx(request.height, raw, result)
        stakes_moved = any(result.kind in STAKE_KINDS for result in response.tx_results)
        decided: list[SegmentKey] = []
        for event in response.all_events():
            attributes = dict(event.attributes)
            if event.type == "slashed" and attributes["task"] == self._task_id:
                self._collect_slash(event, decided[-1], request.height, stakes_moved)
            elif event.subject == self._task_id and "attempt" in attributes and "segment" in attributes:
                key = int(attributes["attempt"]), int(attributes["segment"])
                if event.type == "verdict":
                    decided.append(key)
                self._collect_event(event.type, key, request.height)
        return decided

    def _collect_tx(self, height: int, raw: bytes, result: AppliedTx) -> None:
        if result.code or result.kind not in ("create_task", "commit_segment", "reveal_verdict"):
            return
        body = tx_pb2.TxBody.FromString(tx_pb2.SignedTx.FromString(raw).body)
        ours = {
            "create_task": result.born_id == self._task_id,
            "commit_segment": body.commit_segment.task_id == self._task_id,
            "reveal_verdict": True,
        }
        if ours[result.kind]:
            self.evidence.txs[hashlib.sha256(raw).digest()] = SeenTx(height, result.sender, body)

    def _collect_event(self, kind: str, key: SegmentKey, height: int) -> None:
        evidence, state = self.evidence, self._application.state
        if kind == "segment_opened":
            evidence.opened[key] = height
        elif kind == "segment_discarded":
            evidence.discarded[key] = height
        elif kind in ("audit_opened", "audit_skipped") and key not in evidence.on_probation:
            segment = state.segments[f"{self._task_id}/{key[0]:06d}/{key[1]:06d}"]
            least = state.params.probation_segments
            nodes = [state.nodes[shard.node_id] for shard in segment.shards]
            evidence.on_probation[key] = any(node.verified_segments < least for node in nodes)

    def _collect_slash(self, event: Event, key: SegmentKey, height: int, stakes_moved: bool) -> None:
        """`stakes_moved`: the stake before the slash is not that before the block, so it cannot be told from here."""
        state, node_id = self._application.state, event.subject
        parts = [state.nodes[node_id].stake_utlk]
        parts += [each.amount_utlk for each in state.unbonding.live() if each.subject == node_id]
        known = not stakes_moved and all(slash.height < height for slash in self.evidence.slashes)
        taken = int(dict(event.attributes)["amount_utlk"])
        self.evidence.slashes.append(Slash(node_id, key, tuple(parts) if known else (), taken, height))

    def _apply(self) -> None:
        for module, key, value in self._application.commit():
            if value is None:
                continue
            if module == "segments" and key.startswith(f"{self._task_id}/"):
                segment = state_pb2.Segment.FromString(value)
                self.evidence.segments[segment.attempt, segment.segment] = segment
            elif module == "payments":
                payment = state_pb2.Payment.FromString(value)
                if payment.task_id == self._task_id:
                    self.evidence.payments.append(payment)


def replay_chain(replay: Replay, blocks: Iterable[service_pb2.RawBlock]) -> Evidence | None:
    """Feed all blocks; None when the chain does not verify (the tallies say where)."""
    try:
        for raw in blocks:
            replay.feed(raw)
    except ChainBroken:
        return None
    return replay.finish()
