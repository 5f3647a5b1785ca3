"""A segment trained in one process, then audited: honest, forged in each field, disputed; with dropout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from talkoo_core.errors import Corrupt, InvalidInput
from talkoo_math.batches import sample_indices
from talkoo_math.checkpoint import sha256_hex, tensors_from_bytes
from talkoo_math.determinism import seed_everything, step_seed
from talkoo_math.digest import indices_digest, tensors_digest
from talkoo_math.evaluate import evaluate
from talkoo_math.fixedpoint import sum_contributions
from talkoo_math.flops import flops_per_sample
from talkoo_math.program import Program, load_program
from talkoo_math.recompute import RankClaim, SegmentFinding, SegmentPlan, recompute_segment
from talkoo_math.step import StateRecipe, TrainingState, apply_aggregate, contribution_of, make_state
from talkoo_math.transcript import VERSION, Leaf, Transcript, decode_transcript, encode_transcript, root_of

PLAN = SegmentPlan(beacon=b"\x07" * 32, segment=2, first_step=6, steps=3, shares=(9, 5))
CPU = torch.device("cpu")


def fresh(program: Program, **changes: object) -> TrainingState:
    fields: dict[str, object] = {
        "config": {},
        "optimizer_name": "adam",
        "optimizer_options_json": '{"lr":"0.01"}',
        "seed": 5,
    }
    return make_state(program, StateRecipe(**(fields | changes)), CPU)  # type: ignore[arg-type]


def train(state: TrainingState, data: object) -> tuple[list[list[Leaf]], str, str]:
    """An independent walk of the plan, buffers as a group keeps them: rank 0's are everybody's."""
    leaves: list[list[Leaf]] = [[] for _ in PLAN.shares]
    for offset in range(PLAN.steps):
        step = PLAN.first_step + offset
        indices = sample_indices(PLAN.beacon, PLAN.segment, offset, len(data), PLAN.shares)  # type: ignore[arg-type]
        start = {name: tensor.clone() for name, tensor in state.buffers().items()}
        contributions = []
        for rank in reversed(range(len(PLAN.shares))):  # rank 0 last: its buffers stay
            for name, tensor in state.buffers().items():
                tensor.copy_(start[name])
            seed_everything(step_seed(PLAN.beacon, PLAN.segment, step, rank))
            contributions.insert(0, contribution_of(state, data, indices[rank], step, sum(PLAN.shares)))  # type: ignore[arg-type]
        aggregate = sum_contributions([one.gradients for one in contributions])
        apply_aggregate(state, aggregate)
        for rank, own in enumerate(contributions):
            leaves[rank].append(
                Leaf(
                    step,
                    indices_digest(indices[rank]),
                    own.loss,
                    tensors_digest(own.gradients),
                    tensors_digest(aggregate),
                    state.params_digest(),
                    state.optimizer_digest(),
                )
            )
    return leaves, sha256_hex(state.params_bytes()), sha256_hex(state.optimizer_bytes())


def claim(leaves: list[Leaf], rank: int, params: str, optimizer: str) -> RankClaim:
    return RankClaim(root_of(leaves), params, optimizer, Transcript(VERSION, PLAN.segment, rank, leaves))


@pytest.fixture
def program(program_folder: Callable[[str], Path], program_text: str) -> Program:
    return load_program(program_folder(program_text), "mine")


class Trained:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.data = program.open_data(program.folder / "data.bin", "train")
        self.leaves, self.params, self.optimizer = train(fresh(program), self.data)

    def audit(self, change: Callable[[list[RankClaim]], None] = lambda claims: None) -> SegmentFinding:
        claims = [claim(own, rank, self.params, self.optimizer) for rank, own in enumerate(self.leaves)]
        change(claims)
        return recompute_segment(fresh(self.program), self.data, PLAN, claims)

    def with_leaf(self, rank: int, offset: int, **fields: bytes) -> Callable[[list[RankClaim]], None]:
        def change(claims: list[RankClaim]) -> None:
            leaves = list(self.leaves[rank])
            leaves[offset] = msgspec.structs.replace(leaves[offset], **fields)
            claims[rank] = claim(leaves, rank, self.params, self.optimizer)

        return change


@pytest.fixture
def trained(program: Program) -> Trained:
    return Trained(program)


def test_an_honest_segment_passes_with_dropout_and_batch_norm(trained: Trained) -> None:
    finding = trained.audit()
    assert finding.honest, finding
    assert (finding.params_sha256, finding.optimizer_sha256) == (trained.params, trained.optimizer)
    assert len(finding.losses) == PLAN.steps


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("batch", "other samples"),
        ("loss", "claims a loss"),
        ("contribution", "gradient"),
        ("params", "parameters do not follow"),
        ("optimizer", "optimizer state does not follow"),
    ],
)
def test_each_forged_field_is_found_at_its_step(trained: Trained, field: str, reason: str) -> None:
    lie = bytes(4) if field == "loss" else bytes(32)
    finding = trained.audit(trained.with_leaf(1, 1, **{field: lie}))
    assert [rank.honest for rank in finding.ranks] == [True, False]
    assert finding.ranks[1].first_bad_step == PLAN.first_step + 1
    assert reason in finding.ranks[1].reason


def test_a_sum_that_fits_no_contribution_blames_nobody_but_does_not_stand(trained: Trained) -> None:
    finding = trained.audit(trained.with_leaf(0, 2, aggregate=bytes(32)))
    assert all(rank.honest for rank in finding.ranks)
    assert not finding.honest
    assert "done again" in finding.disputed


def test_a_wrong_root_or_end_state_is_forged(trained: Trained) -> None:
    def wrong_root(claims: list[RankClaim]) -> None:
        claims[0] = RankClaim(bytes(32), trained.params, trained.optimizer, claims[0].transcript)

    def no_transcript(claims: list[RankClaim]) -> None:
        claims[0] = RankClaim(bytes(32), trained.params, trained.optimizer, None)

    def wrong_end(claims: list[RankClaim]) -> None:
        claims[0] = RankClaim(claims[0].root, "00" * 32, trained.optimizer, claims[0].transcript)

    for change in (wrong_root, no_transcript, wrong_end):
        assert [rank.honest for rank in trained.audit(change).ranks] == [False, True]


def test_a_checkpoint_brings_back_the_same_bits(trained: Trained) -> None:
    state = fresh(trained.program)
    train(state, trained.data)
    again = fresh(trained.program, params=state.params_bytes(), optimizer=state.optimizer_bytes(), seed=99)
    assert again.params_bytes() == state.params_bytes()
    assert again.optimizer_bytes() == state.optimizer_bytes()
    assert train(again, trained.data)[1:] == train(state, trained.data)[1:]


def test_flops_and_held_out_counts_are_integers_that_leave_the_state_alone(trained: Trained) -> None:
    state = fresh(trained.program)
    before = state.params_bytes()
    assert flops_per_sample(state, trained.data) == 2 * (
        4 * 8 * 2 + 8 * 2 * 3
    )  # the first layer's input needs no gradient
    correct, total = evaluate(state, trained.data)
    assert 0 <= correct <= total == 50
    assert state.params_bytes() == before
    assert state.model.training


def test_transcripts_have_one_encoding(trained: Trained) -> None:
    transcript = Transcript(VERSION, 2, 0, trained.leaves[0])
    data = encode_transcript(transcript)
    assert decode_transcript(data) == transcript
    for broken in (data[:-1], data + b"\x00", b"", data.replace(bytes([VERSION]), b"\xcc\x01", 1)):
        with pytest.raises(Corrupt):
            decode_transcript(broken)


def test_a_foreign_checkpoint_is_refused(program: Program) -> None:
    with pytest.raises(Corrupt, match="safetensors"):
        tensors_from_bytes(b"not a checkpoint", "the file")
    other = fresh(program)
    other.model[0] = torch.nn.Linear(4, 9)  # type: ignore[index, operator]
    with pytest.raises(InvalidInput, match="in the checkpoint"):
        fresh(program, params=other.params_bytes())
