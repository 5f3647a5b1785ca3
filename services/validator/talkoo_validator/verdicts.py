"""From a finding to a verdict, its commit and reveal, and what to do next about an audit. Pure.

Every validator that computes the same bits must serialize the same verdict, so nothing of one machine (times, paths)
enters it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from talkoo_api.ledger.v1 import state_pb2, tx_pb2

from talkoo_validator.orders import Recomputed

SALT_BYTES = 32
REASON_MAX_CHARS = 240
"""Of a rank's finding on the ledger."""
MAX_RECOMPUTE_ATTEMPTS = 3
"""A child that dies or runs out of time is tried again so often; then this organization abstains."""


def verdict_of(segment: state_pb2.Segment, found: Recomputed) -> tx_pb2.Verdict:
    """The verdict of a finished re-computation. A dispute nobody can be blamed for makes the segment unavailable."""
    findings = [
        tx_pb2.RankFinding(
            rank=finding.rank,
            honest=finding.honest,
            first_bad_step=0 if finding.honest else finding.first_bad_step,
            reason="" if finding.honest else finding.reason[:REASON_MAX_CHARS],
        )
        for finding in found.findings
    ]
    honest = all(finding.honest for finding in findings)
    if found.disputed and honest:
        return unavailable_verdict(segment, found.disputed)
    return tx_pb2.Verdict(
        task_id=segment.task_id,
        attempt=segment.attempt,
        segment=segment.segment,
        findings=findings,
        available=True,
        heldout_correct=found.heldout_correct if honest else 0,
        heldout_total=found.heldout_total if honest else 0,
    )


def unavailable_verdict(segment: state_pb2.Segment, reason: str) -> tx_pb2.Verdict:
    """The segment cannot be judged: its blobs are missing or its program fails. Nobody is blamed; it does not stand.

    The reason stays with the validator: two that miss different blobs shall still agree.
    """
    assert reason
    ranks = sorted(shard.rank for shard in segment.shards)
    return tx_pb2.Verdict(
        task_id=segment.task_id,
        attempt=segment.attempt,
        segment=segment.segment,
        findings=[tx_pb2.RankFinding(rank=rank, honest=True) for rank in ranks],
        available=False,
    )


def verdict_bytes(verdict: tx_pb2.Verdict) -> bytes:
    return verdict.SerializeToString(deterministic=True)


def digest_of(salt: bytes, verdict: bytes) -> bytes:
    """What CommitVerdict carries: SHA-256 of salt + serialized Verdict."""
    assert len(salt) == SALT_BYTES
    return hashlib.sha256(salt + verdict).digest()


class Do(Enum):
    RECOMPUTE = "recompute"
    COMMIT = "commit"
    REVEAL = "reveal"
    WAIT = "wait"
    FINISH = "finish"
    """The audit is over for us: revealed, decided or dropped."""
    GIVE_UP = "give up"
    """We abstain: our vote cannot be given any more."""


@dataclass(frozen=True, slots=True)
class Action:
    do: Do
    reason: str


@dataclass(frozen=True, slots=True)
class OwnAudit:
    """What this validator holds about one audit. `verdict` and `salt` are empty until the re-computation is done."""

    verdict: bytes = b""
    salt: bytes = b""
    failed_attempts: int = 0


@dataclass(frozen=True, slots=True)
class Bench:
    """The court at this moment: voting powers by organization, our own name, the newest height, the audit's length."""

    organization: str
    powers: dict[str, int]
    height: int
    audit_blocks: int


def next_action(segment: state_pb2.Segment, own: OwnAudit, bench: Bench) -> Action:
    """What to do about an audit, given the ledger's segment. Repeating it after a crash resumes where it stood."""
    if segment.phase != state_pb2.SEGMENT_PHASE_AUDITED:
        phase = state_pb2.SegmentPhase.Name(segment.phase).removeprefix("SEGMENT_PHASE_").lower()
        return Action(Do.FINISH, f"the segment is {phase}; no verdict is asked for any more")
    mine = next((vote for vote in segment.votes if vote.organization == bench.organization), None)
    if mine is not None and mine.verdict:
        return Action(Do.FINISH, "our verdict is revealed")
    if mine is not None and not _opens(mine.digest, own):
        return Action(Do.GIVE_UP, "our committed verdict cannot be opened: its salt is lost")
    if mine is None and own.verdict:
        return Action(Do.COMMIT, "the verdict is known")
    if mine is None and own.failed_attempts >= MAX_RECOMPUTE_ATTEMPTS:
        return Action(Do.GIVE_UP, f"the re-computation failed {own.failed_attempts} times")
    if mine is None:
        return Action(Do.RECOMPUTE, "the segment is opened")
    return _reveal_or_wait(segment, bench)


def _opens(digest: bytes, own: OwnAudit) -> bool:
    return len(own.salt) == SALT_BYTES and digest_of(own.salt, own.verdict) == digest


def _reveal_or_wait(segment: state_pb2.Segment, bench: Bench) -> Action:
    """Revealing is allowed once more than two thirds of the power have committed, or half of the time is over."""
    total = sum(bench.powers.values())
    committed = sum(bench.powers.get(vote.organization, 0) for vote in segment.votes)
    if committed * 3 > total * 2:
        return Action(Do.REVEAL, f"{committed} of {total} power have committed")
    if bench.height >= segment.audit_deadline_height - bench.audit_blocks // 2:
        return Action(Do.REVEAL, "half of the audit's time is over")
    return Action(Do.WAIT, f"{committed} of {total} power have committed; more than two thirds are needed")
