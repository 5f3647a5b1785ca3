"""`talkoo verify` over a real chain: production ledger, sealed and signed blocks, trained segments, one forger."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from talkoo_api.ledger.v1 import service_pb2, state_pb2, tx_pb2
from talkoo_consensus import chain as consensus_chain
from talkoo_consensus.encoding import block_id_of, encode_block, encode_commit, vote_sign_bytes
from talkoo_consensus.types import EMPTY_COMMIT, BlockId, BlockIdFlag, Commit, CommitSig, SignedType, TxResult, Vote
from talkoo_consensus.validators import Validator
from talkoo_ledger.application import FinalizeRequest, FinalizeResponse
from talkoo_ledger.records import SegmentPhase, TaskPhase

from talkoo.verification import Report, verify_task
from talkoo.verification.chain import Replay, replay_chain
from talkoo.verification.evidence import Evidence
from talkoo.verification.money import check_escrow, check_model, check_payments, check_slashes, check_supply
from talkoo.verification.recomputation import check_by_recomputing
from talkoo.verification.training import (
    check_beacons,
    check_commitments,
    check_draws,
    check_parameters,
    check_transcripts,
    check_verdicts,
)
from talkoo_core.errors import NotFound
from talkoo_sim.ledger_chain import BLOCK_NS, ORGANIZATIONS, LedgerChain, address, key_of, make_genesis, verdict_of

GANG = ("north-1", "east-1")
SECOND_GANG = ("north-1", "south-1")


@dataclass(slots=True)
class SealedChain(LedgerChain):
    """A ledger chain whose blocks have CometBFT's headers and are signed by all four organizations."""

    raw: list[service_pb2.RawBlock] = field(default_factory=list)
    consensus: Any = None
    last_commit: Commit = EMPTY_COMMIT

    def __post_init__(self) -> None:
        app_hash = self.application.init_chain(self.genesis)
        validators = [
            Validator.of(bytes.fromhex(each.consensus_key), each.stake_utlk) for each in self.genesis.organizations
        ]
        self.consensus = consensus_chain.genesis_state(
            self.genesis.chain_id, self.genesis.genesis_time_ns, validators, app_hash
        )

    def block(self, *txs: bytes) -> FinalizeResponse:
        height = self.height + 1
        proposer = self.consensus.validators.proposer.address
        block = consensus_chain.make_block(self.consensus, txs, self.last_commit, height * BLOCK_NS, proposer)
        block_id = block_id_of(block)
        request = FinalizeRequest(height, block_id.hash, block.header.time_ns, proposer, txs)
        response = self.application.finalize_block(request)
        self.application.commit()
        self.last_commit = self._signed(height, block_id)
        self.raw.append(
            service_pb2.RawBlock(height=height, block=encode_block(block), commit=encode_commit(self.last_commit))
        )
        self.consensus = consensus_chain.advance(
            self.consensus,
            block,
            block_id,
            [TxResult(code=result.code) for result in response.tx_results],
            response.app_hash,
            [Validator.of(update.public_key, update.power) for update in response.validator_updates],
        )
        self.blocks.append(request)
        self.responses.append(response)
        return response

    def _signed(self, height: int, block_id: BlockId) -> Commit:
        keys = {key_of(f"{name}-consensus").public.address: key_of(f"{name}-consensus") for name in ORGANIZATIONS}
        signatures = []
        for index, validator in enumerate(self.consensus.validators.validators):
            vote = Vote(SignedType.PRECOMMIT, height, 0, block_id, height * BLOCK_NS + 1, validator.address, index)
            signature = keys[validator.address].sign(vote_sign_bytes(self.genesis.chain_id, vote))
            signatures.append(CommitSig(BlockIdFlag.COMMIT, validator.address, vote.timestamp_ns, signature))
        return Commit(height, 0, block_id, tuple(signatures))


@dataclass
class Story:
    """A task from funding to its model. Rank 1 of the first gang forges segment 1, another node does it again."""

    genesis_json: str
    raw: list[service_pb2.RawBlock]
    task_id: str
    blobs: dict[str, bytes]

    def fetch(self, digest: str) -> bytes:
        if digest not in self.blobs:
            raise NotFound("there is no such blob")
        return self.blobs[digest]

    def verify(self, **changes: Any) -> Report:
        values = {"blocks": self.raw, "fetch_blob": self.fetch, "genesis_json": self.genesis_json} | changes
        return verify_task(task_id=self.task_id, **values)

    def evidence(self) -> Evidence:
        evidence = replay_chain(Replay(self.genesis_json, self.task_id), self.raw)
        assert evidence is not None
        return evidence


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, kit: ModuleType) -> Story:
    folder = tmp_path_factory.mktemp("story")
    chain = SealedChain(make_genesis(probation_segments=0, audit_floor_ppm=1_000_000))
    chain.register(*GANG, "south-1")
    probe = kit.make_gang(folder / "probe")  # for the spec: program, data and its operations are the same each time
    probe.spec.price_utlk_per_gflop = 2_000_000_000_000
    probe.spec.flops_per_sample = probe.flops
    probe.spec.min_nodes, probe.spec.max_nodes, probe.spec.memory_bytes = 2, 4, 1 << 20
    probe.spec.audit_rate_ppm = 1_000_000
    message = tx_pb2.CreateTask(spec=probe.spec, escrow_utlk=50_000_000)
    task_id = chain.send("alice", message).born_id
    blobs = dict(probe.blobs)
    _place(chain, task_id, GANG, kit.SHARES)

    def hand_in(segment: state_pb2.Segment) -> None:
        if segment.segment == 0:
            _commit(chain, task_id, GANG, segment)
            _judge(chain, task_id)

    first = kit.make_gang(folder / "first", lambda n: chain.segment(task_id, 1, n).beacon, task_id, hand_in)
    blobs |= first.blobs
    forged = kit.with_forged_loss(first, segment=1, rank=1, step=4)
    blobs |= first.blobs
    _commit(chain, task_id, GANG, forged)
    _judge(chain, task_id, forgers=(1,))
    assert chain.task(task_id).phase is TaskPhase.PENDING
    _place(chain, task_id, SECOND_GANG, kit.SHARES)
    beacon_one = chain.segment(task_id, 2, 1).beacon
    beacon_zero = chain.segment(task_id, 1, 0).beacon
    again = kit.make_gang(folder / "again", lambda n: beacon_one if n else beacon_zero, task_id)
    blobs |= again.blobs
    _commit(chain, task_id, SECOND_GANG, again.segments[1])
    _judge(chain, task_id, heldout=again.heldout)
    assert chain.task(task_id).phase is TaskPhase.COMPLETED
    chain.skip(2)
    return Story(chain.genesis.canonical_json().decode(), chain.raw, task_id, blobs)


def _place(chain: SealedChain, task_id: str, gang: tuple[str, ...], shares: tuple[int, ...]) -> None:
    message = chain.placement(task_id, *gang, price_utlk_per_gflop=1_000_000_000_000)
    for shard, samples in zip(message.shards, shares, strict=True):
        shard.samples = samples
    chain.send("north-scheduler", message)


def _commit(chain: SealedChain, task_id: str, gang: tuple[str, ...], segment: state_pb2.Segment) -> None:
    attempt = chain.task(task_id).attempt
    for commitment in segment.commitments:
        commitment.segment.attempt = attempt
    txs = [chain.signed(name, segment.commitments[rank].segment) for rank, name in enumerate(gang)]
    assert all(result.code == 0 for result in chain.block(*txs).tx_results), chain.responses[-1].tx_results
    chain.block()


def _judge(chain: SealedChain, task_id: str, forgers: tuple[int, ...] = (), heldout: tuple[int, int] = (0, 0)) -> None:
    task = chain.task(task_id)
    segment = chain.segment(task_id, task.attempt, task.next_segment - 1)
    assert segment.phase is SegmentPhase.AUDITED
    chain.judge(verdict_of(segment, forgers=forgers, correct=heldout[0], total=heldout[1]))


def test_everything_holds_for_a_task_with_a_forger(story: Story) -> None:
    report = story.verify()
    assert report.ok, report
    counts = {check.name: check.count for check in report.checks}
    assert counts["blocks"] == counts["signatures"] == len(story.raw)
    assert counts["slashes"] == 3
    assert all(counts[name] > 0 for name in counts), counts
    assert "all" in report.verdict


def test_recomputation_confirms_the_honest_and_the_forged(story: Story) -> None:
    report = story.verify(recompute=True)
    last = report.checks[-1]
    assert (last.name, last.count, last.ok) == ("recomputation", 3, True), last


def test_recomputation_finds_a_verdict_that_is_a_lie(story: Story) -> None:
    evidence = story.evidence()
    evidence.standing()[1].outcome.heldout_correct += 1
    forged = evidence.segments[1, 1].outcome
    for finding in forged.findings:
        finding.honest = True
    found = check_by_recomputing(evidence, story.fetch)
    assert "segment 1 (attempt 1): the ledger says otherwise, but here rank 1 at step 4" in found.detail
    assert "segment 1 (attempt 2): the held-out result here is" in found.detail


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("part", ["block", "commit"])
def test_a_changed_byte_in_any_block_or_commit_is_found(story: Story, part: str) -> None:
    """One byte in every 7th block, at a place that wanders through it."""
    for number in range(0, len(story.raw), 7):
        raw = [service_pb2.RawBlock.FromString(each.SerializeToString()) for each in story.raw]
        data = getattr(raw[number], part)
        setattr(raw[number], part, flipped(data, (number * 131 + 17) % len(data)))
        report = story.verify(blocks=raw[: number + 2])
        assert not report.ok, f"byte of {part} {number}"
        assert f"block {number + 1}" in next(check.detail for check in report.checks if not check.ok)


def test_another_genesis_is_another_chain(story: Story) -> None:
    genesis = json.loads(story.genesis_json)
    genesis["accounts"][0]["balance_utlk"] += 1
    report = story.verify(genesis_json=json.dumps(genesis))
    assert [check.name for check in report.checks if not check.ok] == ["state"]


def test_a_left_out_block_is_found(story: Story) -> None:
    assert not story.verify(blocks=story.raw[:5] + story.raw[6:]).ok


@pytest.mark.parametrize("change", ["flip", "remove"])
def test_every_blob_that_a_proof_needs_is_missed_when_it_changes(story: Story, change: str) -> None:
    evidence = story.evidence()
    accepted = [each.segment for segment in evidence.standing() for each in segment.commitments]
    assert evidence.model is not None
    for digest, name in [
        (accepted[0].transcript_sha256, "transcripts"),
        (accepted[-1].transcript_sha256, "transcripts"),
        (accepted[0].params_sha256, "parameters"),
        (accepted[0].optimizer_sha256, "parameters"),
        (evidence.model.code_sha256, "model"),
        (evidence.model.data_sha256, "model"),
    ]:
        blobs = dict(story.blobs)
        if change == "flip":
            blobs[digest] = flipped(blobs[digest], len(blobs[digest]) // 2)
        else:
            del blobs[digest]
        changed = Story(story.genesis_json, story.raw, story.task_id, blobs)
        report = changed.verify()
        assert name in [check.name for check in report.checks if not check.ok], digest


def _first(evidence: Evidence) -> state_pb2.Segment:
    return evidence.standing()[0]


def _commitment(evidence: Evidence) -> state_pb2.Commitment:
    return _first(evidence).commitments[0]


def _payment(evidence: Evidence, kind: str) -> state_pb2.Payment:
    return next(payment for payment in evidence.payments if payment.kind == kind)


TAMPERINGS: list[tuple[str, Callable[[Evidence], None]]] = [
    ("beacons", lambda e: setattr(_first(e), "beacon", b"\1" * 32)),
    ("draws", lambda e: setattr(_first(e), "draw", b"\1" * 32)),
    ("draws", lambda e: setattr(_first(e), "draw_rate_ppm", 1)),
    ("draws", lambda e: setattr(_first(e), "audit_deadline_height", 0)),
    ("commitments", lambda e: setattr(_commitment(e), "tx_hash", b"\1" * 32)),
    ("commitments", lambda e: setattr(_commitment(e).segment, "root", b"\1" * 32)),
    ("commitments", lambda e: setattr(_commitment(e), "node_id", address("west-1"))),
    ("transcripts", lambda e: setattr(_commitment(e).segment, "root", b"\1" * 32)),
    ("parameters", lambda e: setattr(e.standing()[1], "start_params_sha256", "00" * 32)),
    ("verdicts", lambda e: setattr(_first(e).votes[0], "salt", b"\1" * 32)),
    ("verdicts", lambda e: setattr(_first(e).votes[0], "reveal_tx_hash", b"\1" * 32)),
    ("verdicts", lambda e: setattr(_first(e).outcome, "available", False)),
    ("verdicts", lambda e: e.powers[1, 0].update(west=10**12)),
    ("payments", lambda e: setattr(_payment(e, "compute"), "amount_utlk", 10**6)),
    ("payments", lambda e: setattr(_payment(e, "validation"), "destination", address("bob"))),
    ("payments", lambda e: setattr(_payment(e, "finder"), "proof", "verdict:other/1/1")),
    ("payments", lambda e: e.payments.remove(_payment(e, "slash"))),
    ("escrow", lambda e: setattr(_payment(e, "refund"), "amount_utlk", 1)),
    ("slashes", lambda e: setattr(e.slashes[0], "amount_utlk", 1)),
    ("slashes", lambda e: setattr(e.slashes[0], "node_id", address("north-1"))),
    ("model", lambda e: setattr(e.model, "params_sha256", "00" * 32)),
    ("model", lambda e: setattr(e.model, "heldout_correct", 10)),
    ("supply", lambda e: setattr(e.supply, "emitted_utlk", e.supply.emitted_utlk + 1)),
]


@pytest.mark.parametrize(("name", "tamper"), TAMPERINGS)
def test_a_record_that_does_not_follow_the_rules_is_named(
    story: Story, name: str, tamper: Callable[[Evidence], None]
) -> None:
    """The proofs are checked again beside the replay: a ledger with a wrong rule would be found too."""
    evidence = story.evidence()
    checks = {
        "beacons": check_beacons,
        "draws": check_draws,
        "commitments": check_commitments,
        "transcripts": lambda e: check_transcripts(e, story.fetch),
        "parameters": lambda e: check_parameters(e, story.fetch),
        "verdicts": check_verdicts,
        "payments": check_payments,
        "escrow": check_escrow,
        "slashes": check_slashes,
        "model": lambda e: check_model(e, story.fetch),
        "supply": check_supply,
    }
    assert checks[name](evidence).ok
    tamper(evidence)
    found = checks[name](evidence)
    assert not found.ok
    assert found.detail


def test_a_task_that_is_not_there_is_said(story: Story) -> None:
    with pytest.raises(NotFound, match="holds no task"):
        verify_task(story.genesis_json, story.raw, "task-none", story.fetch)


def test_hashes_in_the_story_are_those_of_real_bytes(story: Story, tmp_path: Path) -> None:
    assert all(hashlib.sha256(data).hexdigest() == digest for digest, data in story.blobs.items())
