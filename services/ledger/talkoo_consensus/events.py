"""Events into the driver and commands out of it. See `driver` for who sends what and when."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from talkoo_consensus.types import EMPTY_COMMIT, Block, BlockId, Commit, ConflictingVotes, Proposal, Vote
from talkoo_consensus.validators import ValidatorSet


class Step(IntEnum):
    """Steps of a round (paper, line 4), and what surrounds them."""

    UNSTARTED = 0
    PROPOSE = 1
    PREVOTE = 2
    PRECOMMIT = 3
    COMMIT = 4


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Milliseconds. A round r waits `x_ms + r * x_delta_ms` in step x; after a decision, `commit_ms` for late votes."""

    propose_ms: int = 3000
    propose_delta_ms: int = 500
    prevote_ms: int = 1000
    prevote_delta_ms: int = 500
    precommit_ms: int = 1000
    precommit_delta_ms: int = 500
    commit_ms: int = 150

    def of(self, step: Step, round_: int) -> int:
        if step is Step.PROPOSE:
            return self.propose_ms + round_ * self.propose_delta_ms
        if step is Step.PREVOTE:
            return self.prevote_ms + round_ * self.prevote_delta_ms
        if step is Step.PRECOMMIT:
            return self.precommit_ms + round_ * self.precommit_delta_ms
        return self.commit_ms


# Events


@dataclass(frozen=True, slots=True)
class StartHeight:
    """Begin a height. `validators`: the set of this height, rotated for round 0. `last_commit` decided height - 1."""

    height: int
    validators: ValidatorSet
    last_commit: Commit = EMPTY_COMMIT


@dataclass(frozen=True, slots=True)
class ProposalReceived:
    """A proposal with its whole block. Whoever feeds this event has checked `verify_proposal` against the proposer of
    (height, round), and `is_block_of`. `timely`: `chain.timely` held when it arrived; true for our own."""

    proposal: Proposal
    block: Block
    timely: bool = True


@dataclass(frozen=True, slots=True)
class VoteReceived:
    """A vote whose signature was verified (`verify.verify_vote`), or our own after signing."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class TimeoutElapsed:
    height: int
    round: int
    step: Step


@dataclass(frozen=True, slots=True)
class ValueBuilt:
    """The answer to BuildValue."""

    height: int
    round: int
    block: Block
    block_id: BlockId


@dataclass(frozen=True, slots=True)
class ValueChecked:
    """The answer to CheckValue. `valid` must be the same on every correct node: it never depends on a clock."""

    height: int
    round: int
    block_id: BlockId
    valid: bool


Event: TypeAlias = StartHeight | ProposalReceived | VoteReceived | TimeoutElapsed | ValueBuilt | ValueChecked


# Commands


@dataclass(frozen=True, slots=True)
class BuildValue:
    """We propose in this round: make a block on `last_commit` and answer with ValueBuilt before the propose timeout."""

    height: int
    round: int
    last_commit: Commit


@dataclass(frozen=True, slots=True)
class CheckValue:
    """Ask the application whether the block is valid; answer with ValueChecked. Asked once for each block id."""

    height: int
    round: int
    block_id: BlockId
    block: Block


@dataclass(frozen=True, slots=True)
class SignAndSendProposal:
    """Sign, persist, send to all peers, and feed back as ProposalReceived."""

    proposal: Proposal
    block: Block


@dataclass(frozen=True, slots=True)
class SignAndSendVote:
    """Fill `timestamp_ns`, sign, persist, send to all peers, and feed back as VoteReceived."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class ScheduleTimeout:
    """After `duration_ms`, answer with TimeoutElapsed of the same height, round and step. Late ones are harmless."""

    height: int
    round: int
    step: Step
    duration_ms: int


@dataclass(frozen=True, slots=True)
class Decide:
    """The block is final: execute and store it with `commit` (> 2/3 of the power). Emitted once for a height."""

    height: int
    round: int
    block_id: BlockId
    block: Block
    commit: Commit


@dataclass(frozen=True, slots=True)
class EndHeight:
    """The hold for late precommits is over: once the block is executed, send StartHeight(height + 1) with `commit`."""

    height: int
    commit: Commit


@dataclass(frozen=True, slots=True)
class ReportEvidence:
    """A validator voted twice. Told once for each validator, round and type."""

    votes: ConflictingVotes


@dataclass(frozen=True, slots=True)
class Redeliver:
    """A message that came a height too early: log it and feed it again, now that its height has started."""

    message: ProposalReceived | VoteReceived


Command: TypeAlias = (
    BuildValue
    | CheckValue
    | SignAndSendProposal
    | SignAndSendVote
    | ScheduleTimeout
    | Decide
    | EndHeight
    | ReportEvidence
    | Redeliver
)
