"""Verdicts, their commit and reveal, and what to do next, as tables."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_validator.orders import Finding, Recomputed
from talkoo_validator.verdicts import (
    MAX_RECOMPUTE_ATTEMPTS,
    Bench,
    Do,
    OwnAudit,
    digest_of,
    next_action,
    unavailable_verdict,
    verdict_bytes,
    verdict_of,
)

SALT, VERDICT = b"s" * 32, b"a verdict"
OWN = OwnAudit(VERDICT, SALT)
POWERS = {"east": 100, "north": 100, "south": 100, "west": 100}


def segment(phase: str = "AUDITED", **votes: bytes) -> state_pb2.Segment:
    """`votes`: organization to its digest; the revealed verdict of `north` is given as `revealed`."""
    revealed = votes.pop("revealed", b"")
    return state_pb2.Segment(
        task_id="task-1",
        attempt=1,
        segment=2,
        phase=state_pb2.SegmentPhase.Value(f"SEGMENT_PHASE_{phase}"),
        audit_deadline_height=140,
        shards=[tx_pb2.Shard(rank=0), tx_pb2.Shard(rank=1)],
        votes=[
            state_pb2.VerdictVote(organization=name, digest=digest, verdict=revealed if name == "north" else b"")
            for name, digest in votes.items()
        ],
    )


def bench(height: int = 101) -> Bench:
    return Bench("north", POWERS, height, audit_blocks=40)


OURS = digest_of(SALT, VERDICT)
OTHER = b"o" * 32


@pytest.mark.parametrize(
    ("now", "own", "height", "do"),
    [
        (segment(), OwnAudit(), 101, Do.RECOMPUTE),
        (segment(), OwnAudit(failed_attempts=MAX_RECOMPUTE_ATTEMPTS - 1), 101, Do.RECOMPUTE),
        (segment(), OwnAudit(failed_attempts=MAX_RECOMPUTE_ATTEMPTS), 101, Do.GIVE_UP),
        (segment(), OWN, 101, Do.COMMIT),
        (segment(east=OTHER, south=OTHER, west=OTHER), OWN, 101, Do.COMMIT),
        (segment(north=OURS), OWN, 101, Do.WAIT),
        (segment(north=OURS, east=OTHER), OWN, 101, Do.WAIT),
        (segment(north=OURS, east=OTHER, south=OTHER), OWN, 101, Do.REVEAL),
        (segment(north=OURS), OWN, 119, Do.WAIT),
        (segment(north=OURS), OWN, 120, Do.REVEAL),
        (segment(north=OURS), OwnAudit(), 101, Do.GIVE_UP),
        (segment(north=OURS), OwnAudit(VERDICT, b"t" * 32), 101, Do.GIVE_UP),
        (segment(north=OURS, revealed=VERDICT), OWN, 101, Do.FINISH),
        *((segment(phase), OWN, 101, Do.FINISH) for phase in ("OPEN", "COMMITTED", "PASSED", "ACCEPTED", "DISCARDED")),
    ],
)
def test_next_action(now: state_pb2.Segment, own: OwnAudit, height: int, do: Do) -> None:
    action = next_action(now, own, bench(height))
    assert action.do is do
    assert action.reason


def test_power_counts_and_not_heads() -> None:
    small = Bench("north", {"east": 1, "north": 1, "south": 1, "west": 7}, 101, audit_blocks=40)
    assert next_action(segment(north=OURS, east=OTHER, south=OTHER), OWN, small).do is Do.WAIT
    assert next_action(segment(north=OURS, west=OTHER), OWN, small).do is Do.REVEAL


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200))
def test_a_digest_is_sha256_of_salt_and_verdict(salt: bytes, verdict: bytes) -> None:
    assert digest_of(salt, verdict) == hashlib.sha256(salt + verdict).digest()


def recomputed(*honest: bool, disputed: str = "", duration_s: float = 1.0) -> Recomputed:
    return Recomputed(
        findings=[
            Finding(rank=rank, honest=each, first_bad_step=0 if each else 7, reason="why")
            for rank, each in enumerate(honest)
        ],
        steps_checked=3,
        disputed=disputed,
        params_sha256="",
        optimizer_sha256="",
        heldout_correct=9,
        heldout_total=10,
        duration_s=duration_s,
        cpu_seconds=duration_s,
    )


def test_two_machines_that_find_the_same_serialize_the_same_verdict() -> None:
    one, other = recomputed(True, False, duration_s=1.0), recomputed(True, False, duration_s=9.0)
    assert verdict_bytes(verdict_of(segment(), one)) == verdict_bytes(verdict_of(segment(), other))


def test_an_honest_verdict_carries_the_held_out_score_and_a_forged_one_does_not() -> None:
    honest, forged = verdict_of(segment(), recomputed(True, True)), verdict_of(segment(), recomputed(True, False))
    assert (honest.available, honest.heldout_correct, honest.heldout_total) == (True, 9, 10)
    assert (forged.available, forged.heldout_total) == (True, 0)
    assert [(f.honest, f.first_bad_step) for f in forged.findings] == [(True, 0), (False, 7)]


def test_a_dispute_without_a_culprit_blames_nobody_and_does_not_stand() -> None:
    verdict = verdict_of(segment(), recomputed(True, True, disputed="somebody sent other integers"))
    assert not verdict.available
    assert all(finding.honest for finding in verdict.findings)
    assert verdict == unavailable_verdict(segment(), "another reason")
