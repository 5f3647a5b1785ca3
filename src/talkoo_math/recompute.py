"""Proof of AI Training: compute a whole segment again, all ranks in one process, and compare every bit.

What can be told apart, step by step (DESIGN decision 4):

* A rank whose batch, loss or contribution differs from the computed one *forged* (or its machine is broken): it alone
  chose those bytes. The walk stops there, since the real aggregate holds a contribution nobody can compute; ranks whose
  own claims were right up to and including that step are honest.
* All contributions are right, yet a rank's aggregate differs: somebody sent other integers than it claims. The sender
  had computed the honest gradient all the same (its digest is right), so nothing was gained and no one is blamed, but
  the segment does not stand: `disputed`.
* The aggregate is right, yet parameters or optimizer differ: that rank's own claim contradicts itself; it forged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from talkoo_math.batches import Indices, sample_indices
from talkoo_math.checkpoint import sha256_hex
from talkoo_math.determinism import seed_everything, step_seed
from talkoo_math.digest import float32_of_bits, indices_digest, tensors_digest
from talkoo_math.fixedpoint import sum_contributions
from talkoo_math.program import DataSet
from talkoo_math.step import Contribution, TrainingState, apply_aggregate, contribution_of
from talkoo_math.transcript import Leaf, Transcript, root_of


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """What was to be done. `beacon`: 32 bytes; `shares`: samples of each rank in every global batch."""

    beacon: bytes
    segment: int
    first_step: int
    steps: int
    shares: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RankClaim:
    """What one rank committed. `transcript` is None where what was uploaded is not a transcript at all."""

    root: bytes
    params_sha256: str
    optimizer_sha256: str
    transcript: Transcript | None


@dataclass(frozen=True, slots=True)
class RankFinding:
    rank: int
    honest: bool
    first_bad_step: int = 0
    """Global step, when not honest."""
    reason: str = "every step was computed again with equal bits"


@dataclass(frozen=True, slots=True)
class SegmentFinding:
    """The outcome for each rank. The end state is known only when the whole segment could be walked."""

    ranks: tuple[RankFinding, ...]
    steps_checked: int
    params_sha256: str = ""
    optimizer_sha256: str = ""
    disputed: str = ""
    """Why the segment does not stand although no rank can be blamed; empty otherwise."""
    losses: tuple[float, ...] = field(default=())

    @property
    def honest(self) -> bool:
        return not self.disputed and all(finding.honest for finding in self.ranks)


def recompute_segment(
    state: TrainingState,
    data: DataSet,
    plan: SegmentPlan,
    claims: Sequence[RankClaim],
    on_step: Callable[[int], None] | None = None,
) -> SegmentFinding:
    """Walk `plan` from `state` (the segment's start; it is changed in place) and compare with each rank's claim.

    Call `make_deterministic()` first. Raises the program's typed errors when the user's own code fails, which is
    nobody's forgery.
    """
    assert len(claims) == len(plan.shares)
    faults = {rank: fault for rank, claim in enumerate(claims) if (fault := _malformed(claim, rank, plan))}
    leaves = {rank: claim.transcript.leaves for rank, claim in enumerate(claims) if claim.transcript is not None}
    if faults:
        return _stopped(faults, plan, 0)
    for offset in range(plan.steps):
        step = plan.first_step + offset
        here = {rank: own[offset] for rank, own in leaves.items()}
        contributions, indices = _contributions(state, data, plan, offset)
        for rank, leaf in here.items():
            if reason := _own_fault(leaf, contributions[rank], indices[rank]):
                faults[rank] = (step, reason)
        if faults:
            return _stopped(faults, plan, offset + 1)
        aggregate = sum_contributions([contribution.gradients for contribution in contributions])
        expected = tensors_digest(aggregate)
        strange = [rank for rank, leaf in here.items() if leaf.aggregate != expected]
        if strange:
            reason = (
                f"at step {step} every contribution is right, but rank {', '.join(map(str, strange))} says it received "
                "another sum: the segment is done again and no one is blamed"
            )
            honest = tuple(RankFinding(rank, True) for rank in range(len(claims)))
            return SegmentFinding(honest, offset + 1, disputed=reason)
        apply_aggregate(state, aggregate)
        params, optimizer = state.params_digest(), state.optimizer_digest()
        for rank, leaf in here.items():
            if leaf.params != params:
                faults[rank] = (step, "its parameters do not follow from the aggregate it names")
            elif leaf.optimizer != optimizer:
                faults[rank] = (step, "its optimizer state does not follow from the aggregate it names")
        if faults:
            return _stopped(faults, plan, offset + 1)
        if on_step is not None:
            on_step(step)
    return _walked(state, plan, claims, leaves)


def _contributions(
    state: TrainingState, data: DataSet, plan: SegmentPlan, offset: int
) -> tuple[list[Contribution], tuple[Indices, ...]]:
    """All ranks' contributions of one step. Buffers: each rank starts from the same, rank 0's are carried on."""
    indices = sample_indices(plan.beacon, plan.segment, offset, len(data), plan.shares)
    before = {name: tensor.clone() for name, tensor in state.buffers().items()}
    after = before
    contributions: list[Contribution] = []
    for rank, own in enumerate(indices):
        for name, tensor in state.buffers().items():
            tensor.copy_(before[name])
        seed_everything(step_seed(plan.beacon, plan.segment, plan.first_step + offset, rank))
        contributions.append(contribution_of(state, data, own, plan.first_step + offset, sum(plan.shares)))
        if rank == 0:
            after = {name: tensor.clone() for name, tensor in state.buffers().items()}
    for name, tensor in state.buffers().items():
        tensor.copy_(after[name])
    return contributions, indices


def _malformed(claim: RankClaim, rank: int, plan: SegmentPlan) -> tuple[int, str] | None:
    """What can be seen without computing: the root, the numbering, the length."""
    transcript = claim.transcript
    if transcript is None:
        return plan.first_step, "what it uploaded is not a transcript"
    if root_of(transcript.leaves) != claim.root:
        return plan.first_step, "its transcript does not have the committed root"
    numbers = [leaf.step for leaf in transcript.leaves]
    if numbers != list(range(plan.first_step, plan.first_step + plan.steps)):
        return plan.first_step, f"its transcript does not hold the {plan.steps} steps from {plan.first_step} on"
    if (transcript.segment, transcript.rank) != (plan.segment, rank):
        return plan.first_step, "its transcript is of another segment or rank"
    return None


def _own_fault(leaf: Leaf, computed: Contribution, indices: Indices) -> str:
    if leaf.batch != indices_digest(indices):
        return "it used other samples than the beacon gave it"
    if leaf.loss != computed.loss:
        said, found = float32_of_bits(leaf.loss), float32_of_bits(computed.loss)
        return f"it claims a loss of {said:.6g}; computing the step again gives {found:.6g}"
    if leaf.contribution != tensors_digest(computed.gradients):
        return "its gradient is not what computing the step again gives"
    return ""


def _stopped(faults: dict[int, tuple[int, str]], plan: SegmentPlan, steps_checked: int) -> SegmentFinding:
    clear = f"its own claims were right in the {steps_checked} steps that could be computed again"
    ranks = tuple(
        RankFinding(rank, False, *faults[rank]) if rank in faults else RankFinding(rank, True, reason=clear)
        for rank in range(len(plan.shares))
    )
    return SegmentFinding(ranks, steps_checked)


def _walked(
    state: TrainingState, plan: SegmentPlan, claims: Sequence[RankClaim], leaves: dict[int, list[Leaf]]
) -> SegmentFinding:
    """The whole segment agrees; the committed checkpoints must be the state it ends in."""
    params, optimizer = sha256_hex(state.params_bytes()), sha256_hex(state.optimizer_bytes())
    last = plan.first_step + plan.steps - 1
    ranks = []
    for rank, claim in enumerate(claims):
        if claim.params_sha256 != params:
            ranks.append(
                RankFinding(rank, False, last, "its committed parameters are not the ones its last step ends in")
            )
        elif claim.optimizer_sha256 != optimizer:
            ranks.append(
                RankFinding(rank, False, last, "its committed optimizer state is not the one its last step ends in")
            )
        else:
            ranks.append(RankFinding(rank, True))
    losses = tuple(_global_loss([own[offset] for own in leaves.values()], plan.shares) for offset in range(plan.steps))
    return SegmentFinding(tuple(ranks), plan.steps, params, optimizer, losses=losses)


def _global_loss(leaves: Sequence[Leaf], shares: Sequence[int]) -> float:
    """Mean over the global batch, for display."""
    weighted = sum(float32_of_bits(leaf.loss) * share for leaf, share in zip(leaves, shares, strict=True))
    return float(torch.tensor(weighted / sum(shares), dtype=torch.float32))
