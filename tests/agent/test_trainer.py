"""Trainers as real processes: DDP over gloo, transcripts, audits of honest and of forged work, resume, a lost peer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from talkoo_agent.trainer_messages import ChildFailed, RunSegment, SegmentDone

from talkoo_math.determinism import make_deterministic
from talkoo_math.program import load_program
from talkoo_math.recompute import RankClaim, SegmentFinding, SegmentPlan, recompute_segment
from talkoo_math.step import StateRecipe, make_state
from talkoo_math.transcript import decode_transcript

Session = tuple[Any, list[list[SegmentDone]]]
DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def claims_of(done: list[SegmentDone]) -> list[RankClaim]:
    return [
        RankClaim(
            bytes.fromhex(one.root),
            one.params_sha256,
            one.optimizer_sha256,
            decode_transcript(Path(one.transcript_path).read_bytes()),
        )
        for one in done
    ]


def audit(session: Session, segment: int) -> SegmentFinding:
    """What a validator does, from the blobs alone."""
    group, segments = session
    make_deterministic()
    program = load_program(DIGITS, "digits")
    before = segments[segment - 1][0] if segment else None
    recipe = StateRecipe(
        config={"channels": 4},
        optimizer_name="adam",
        optimizer_options_json='{"lr":"0.005"}',
        seed=7,
        params=Path(before.params_path).read_bytes() if before else None,
        optimizer=Path(before.optimizer_path).read_bytes() if before else None,
    )
    plan = SegmentPlan(
        beacon=hashlib.sha256(f"beacon {segment}".encode()).digest(),
        segment=segment,
        first_step=segment * 4,
        steps=4,
        shares=tuple(group.shares),
    )
    state = make_state(program, recipe, torch.device("cpu"))
    data = program.open_data(DIGITS / "digits.npz", "train")
    return recompute_segment(state, data, plan, claims_of(segments[segment]))


def test_all_ranks_commit_to_the_same_state(honest_then_forging: Session) -> None:
    for done in honest_then_forging[1]:
        assert len({one.params_sha256 for one in done}) == 1
        assert len({one.optimizer_sha256 for one in done}) == 1
        assert len({one.root for one in done}) == 2, "each rank has its own leaves"
        assert len({one.loss_bits for one in done}) == 1
        assert [one.samples for one in done] == [160, 96]


@pytest.mark.parametrize("segment", [0, 1])
def test_an_honest_segment_is_computed_again_with_equal_bits(honest_then_forging: Session, segment: int) -> None:
    finding = audit(honest_then_forging, segment)
    assert finding.honest, finding
    assert finding.params_sha256 == honest_then_forging[1][segment][0].params_sha256
    assert finding.steps_checked == 4


def test_a_forger_is_caught_at_its_first_step_and_the_honest_rank_is_cleared(honest_then_forging: Session) -> None:
    finding = audit(honest_then_forging, 2)
    assert [rank.honest for rank in finding.ranks] == [True, False]
    assert finding.ranks[1].first_bad_step == 8
    assert "computing the step again" in finding.ranks[1].reason


def test_resuming_gives_the_same_bits_and_a_lost_peer_is_an_error(
    honest_then_forging: Session, group_of: Any, tmp_path: Path
) -> None:
    first = honest_then_forging[1][0]
    changes: list[dict[str, object]] = [
        {"params_path": one.params_path, "optimizer_path": one.optimizer_path, "duty": duty}
        for one, duty in zip(first, (1.0, 0.5), strict=True)
    ]
    group = group_of(tmp_path, [40, 24], changes)
    try:
        again = group.run(1)
        assert [one.root for one in again] == [one.root for one in honest_then_forging[1][1]]
        assert again[0].params_sha256 == honest_then_forging[1][1][0].params_sha256
        group.trainers[1].kill()
        group.trainers[0].send(RunSegment(segment=2, beacon="00" * 32, first_step=8, steps=4))
        failed = group.trainers[0].next(ChildFailed)
        assert (failed.kind, failed.step) == ("peer_lost", 8)
        assert group.trainers[0].process.wait(30) != 0
    finally:
        group.kill()
