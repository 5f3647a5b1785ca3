"""The round machine: Tendermint's rules (arXiv 1807.04938, algorithm 1) as `apply(state, input) -> (state, outputs)`.

An input says that the messages a rule waits for are there; the rule's remaining conditions on the state are checked
here. An input whose rule does not apply changes nothing, so inputs may be offered again and again. Values are block
ids; nil is `None`. Line numbers are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from talkoo_consensus.events import Step
from talkoo_consensus.types import BlockId

HASTY_ROUNDS: Final = 16
"""In so many rounds of a height NilRound spares the wait. Where nothing is ever acceptable, the timeouts that grow must
slow the rounds down."""


@dataclass(frozen=True, slots=True)
class RoundState:
    """Lines 1-9. `locked` and `valid` pair a value with its round; `*_armed`, `polka_seen`: "for the first time"."""

    height: int
    round: int = 0
    step: Step = Step.UNSTARTED
    locked: tuple[BlockId, int] | None = None
    valid: tuple[BlockId, int] | None = None
    polka_seen: bool = False
    prevote_armed: bool = False
    precommit_armed: bool = False
    decision: tuple[BlockId, int] | None = None


# Inputs


@dataclass(frozen=True, slots=True)
class StartRound:
    round: int
    we_propose: bool


@dataclass(frozen=True, slots=True)
class FreshProposal:
    """A proposal of this round with validRound -1. `acceptable`: valid(v), and timely."""

    value: BlockId
    acceptable: bool


@dataclass(frozen=True, slots=True)
class ProposalWithPolka:
    """A proposal of this round with validRound vr, and 2f+1 prevotes for its value in vr."""

    value: BlockId
    valid_round: int
    is_valid: bool


@dataclass(frozen=True, slots=True)
class PolkaAny:
    """2f+1 prevotes of this round, for whatever."""


@dataclass(frozen=True, slots=True)
class PolkaValue:
    """A valid proposal of this round, and 2f+1 prevotes of this round for its value."""

    value: BlockId


@dataclass(frozen=True, slots=True)
class PolkaNil:
    """2f+1 prevotes of this round for nil."""


@dataclass(frozen=True, slots=True)
class PrecommitAny:
    """2f+1 precommits of this round, for whatever."""


@dataclass(frozen=True, slots=True)
class NilRound:
    """2f+1 prevotes and 2f+1 precommits of this round, all for nil: it decides nothing, and no lock can hide in it."""


@dataclass(frozen=True, slots=True)
class PrecommitValue:
    """A valid proposal of some round, and 2f+1 precommits of that round for its value."""

    round: int
    value: BlockId


@dataclass(frozen=True, slots=True)
class SkipRound:
    """f+1 have sent messages of a later round."""

    round: int
    we_propose: bool


@dataclass(frozen=True, slots=True)
class Timeout:
    round: int
    step: Step


Input: TypeAlias = (
    StartRound
    | FreshProposal
    | ProposalWithPolka
    | PolkaAny
    | PolkaValue
    | PolkaNil
    | PrecommitAny
    | NilRound
    | PrecommitValue
    | SkipRound
    | Timeout
)


# Outputs


@dataclass(frozen=True, slots=True)
class Build:
    """getValue() of line 18: asked of the application."""


@dataclass(frozen=True, slots=True)
class Repropose:
    """Line 16: propose the valid value again, with the round that made it valid."""

    value: BlockId
    valid_round: int


@dataclass(frozen=True, slots=True)
class Prevote:
    value: BlockId | None


@dataclass(frozen=True, slots=True)
class Precommit:
    value: BlockId | None


@dataclass(frozen=True, slots=True)
class Arm:
    step: Step


@dataclass(frozen=True, slots=True)
class NextRound:
    """The round is given up: answer with StartRound."""

    round: int


@dataclass(frozen=True, slots=True)
class Decided:
    round: int
    value: BlockId


Output: TypeAlias = Build | Repropose | Prevote | Precommit | Arm | NextRound | Decided


def apply(state: RoundState, event: Input) -> tuple[RoundState, tuple[Output, ...]]:
    """One rule of the paper. Deterministic; returns the state itself and no output where no rule applies."""
    if state.decision is not None:
        return state, ()
    match event:
        case StartRound(round_, we_propose) | SkipRound(round_, we_propose):  # lines 11, 55-56
            return _start(state, round_, we_propose)
        case FreshProposal(value, acceptable) if state.step is Step.PROPOSE:  # lines 22-27
            unlocked = state.locked is None or state.locked[0] == value  # line 23
            return _prevote(state, value if acceptable and unlocked else None)
        case ProposalWithPolka(value, valid_round, is_valid) if state.step is Step.PROPOSE:  # lines 28-33
            return _prevote(state, value if is_valid and _may_unlock(state, value, valid_round) else None)
        case PolkaAny() if state.step is Step.PREVOTE and not state.prevote_armed:  # lines 34-35
            return replace(state, prevote_armed=True), (Arm(Step.PREVOTE),)
        case PolkaValue(value) if state.step >= Step.PREVOTE and not state.polka_seen:  # lines 36-43
            return _see_polka(state, value)
        case PolkaNil() if state.step is Step.PREVOTE:  # lines 44-46
            return _precommit(state, None)
        case PrecommitAny() if not state.precommit_armed:  # lines 47-48
            return replace(state, precommit_armed=True), (Arm(Step.PRECOMMIT),)
        case NilRound() if state.step is Step.PRECOMMIT and state.round < HASTY_ROUNDS:
            # lines 65-67 without the wait, for which there is no use
            return state, (NextRound(state.round + 1),)
        case PrecommitValue(round_, value):  # lines 49-54
            return replace(state, decision=(value, round_), step=Step.COMMIT), (Decided(round_, value),)
        case Timeout(round_, step) if round_ == state.round:
            return _time_out(state, step)
    return state, ()


def _start(state: RoundState, round_: int, we_propose: bool) -> tuple[RoundState, tuple[Output, ...]]:
    """Lines 11-21. The timeout is armed for the proposer as well, since our getValue() may fail."""
    if state.step is not Step.UNSTARTED and round_ <= state.round:
        return state, ()
    started = replace(
        state, round=round_, step=Step.PROPOSE, polka_seen=False, prevote_armed=False, precommit_armed=False
    )
    if not we_propose:
        return started, (Arm(Step.PROPOSE),)  # line 21
    propose = Build() if state.valid is None else Repropose(*state.valid)  # lines 15-18
    return started, (Arm(Step.PROPOSE), propose)


def _may_unlock(state: RoundState, value: BlockId, valid_round: int) -> bool:
    """Line 29: lockedRound <= vr, or locked on this very value."""
    return state.locked is None or state.locked[1] <= valid_round or state.locked[0] == value


def _prevote(state: RoundState, value: BlockId | None) -> tuple[RoundState, tuple[Output, ...]]:
    return replace(state, step=Step.PREVOTE), (Prevote(value),)


def _precommit(state: RoundState, value: BlockId | None) -> tuple[RoundState, tuple[Output, ...]]:
    return replace(state, step=Step.PRECOMMIT), (Precommit(value),)


def _see_polka(state: RoundState, value: BlockId) -> tuple[RoundState, tuple[Output, ...]]:
    """Lines 37-43. The valid value is updated also after our precommit, or a lock of others could stay hidden."""
    seen = replace(state, polka_seen=True, valid=(value, state.round))
    if state.step is Step.PREVOTE:
        return _precommit(replace(seen, locked=(value, state.round)), value)
    return seen, ()


def _time_out(state: RoundState, step: Step) -> tuple[RoundState, tuple[Output, ...]]:
    if step is Step.PROPOSE and state.step is Step.PROPOSE:  # lines 57-60
        return _prevote(state, None)
    if step is Step.PREVOTE and state.step is Step.PREVOTE:  # lines 61-64
        return _precommit(state, None)
    if step is Step.PRECOMMIT:  # lines 65-67
        return state, (NextRound(state.round + 1),)
    return state, ()
