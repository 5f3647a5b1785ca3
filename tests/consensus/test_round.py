"""The round machine, one test for each rule of the paper (arXiv 1807.04938, algorithm 1)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talkoo_consensus.events import Step
from talkoo_consensus.round import (
    Arm,
    Build,
    Decided,
    FreshProposal,
    Input,
    NextRound,
    Output,
    PolkaAny,
    PolkaNil,
    PolkaValue,
    Precommit,
    PrecommitAny,
    PrecommitValue,
    Prevote,
    ProposalWithPolka,
    Repropose,
    RoundState,
    SkipRound,
    StartRound,
    Timeout,
    apply,
)
from talkoo_consensus.types import BlockId

A = BlockId(b"a" * 32, 1, b"p" * 32)
B = BlockId(b"b" * 32, 1, b"q" * 32)

PROPOSE = RoundState(7, 3, Step.PROPOSE)
PREVOTE = RoundState(7, 3, Step.PREVOTE)
PRECOMMIT = RoundState(7, 3, Step.PRECOMMIT)

TABLE: list[tuple[str, RoundState, Input, tuple[Output, ...], Step]] = [
    (
        "line 18: the proposer asks for a value",
        RoundState(7),
        StartRound(0, True),
        (Arm(Step.PROPOSE), Build()),
        Step.PROPOSE,
    ),
    (
        "line 16: a valid value is proposed again",
        replace(PRECOMMIT, valid=(A, 2)),
        StartRound(4, True),
        (Arm(Step.PROPOSE), Repropose(A, 2)),
        Step.PROPOSE,
    ),
    ("line 21: others wait for the proposal", RoundState(7), StartRound(0, False), (Arm(Step.PROPOSE),), Step.PROPOSE),
    ("line 24: a fresh valid value", PROPOSE, FreshProposal(A, True), (Prevote(A),), Step.PREVOTE),
    ("line 26: a fresh value that is not valid", PROPOSE, FreshProposal(A, False), (Prevote(None),), Step.PREVOTE),
    (
        "line 23: locked on this value",
        replace(PROPOSE, locked=(A, 1)),
        FreshProposal(A, True),
        (Prevote(A),),
        Step.PREVOTE,
    ),
    (
        "line 26: locked on another value",
        replace(PROPOSE, locked=(B, 1)),
        FreshProposal(A, True),
        (Prevote(None),),
        Step.PREVOTE,
    ),
    ("line 22: only while proposing", PREVOTE, FreshProposal(A, True), (), Step.PREVOTE),
    ("line 29: no lock", PROPOSE, ProposalWithPolka(A, 1, True), (Prevote(A),), Step.PREVOTE),
    (
        "line 29: locked earlier than vr",
        replace(PROPOSE, locked=(B, 0)),
        ProposalWithPolka(A, 1, True),
        (Prevote(A),),
        Step.PREVOTE,
    ),
    (
        "line 29: locked in vr itself",
        replace(PROPOSE, locked=(B, 1)),
        ProposalWithPolka(A, 1, True),
        (Prevote(A),),
        Step.PREVOTE,
    ),
    (
        "line 32: locked later than vr",
        replace(PROPOSE, locked=(B, 2)),
        ProposalWithPolka(A, 1, True),
        (Prevote(None),),
        Step.PREVOTE,
    ),
    (
        "line 29: locked later, on this value",
        replace(PROPOSE, locked=(A, 2)),
        ProposalWithPolka(A, 1, True),
        (Prevote(A),),
        Step.PREVOTE,
    ),
    ("line 32: not valid", PROPOSE, ProposalWithPolka(A, 1, False), (Prevote(None),), Step.PREVOTE),
    ("line 35: prevote timeout", PREVOTE, PolkaAny(), (Arm(Step.PREVOTE),), Step.PREVOTE),
    ("line 34: armed once", replace(PREVOTE, prevote_armed=True), PolkaAny(), (), Step.PREVOTE),
    ("line 34: not before our prevote", PROPOSE, PolkaAny(), (), Step.PROPOSE),
    ("line 40: precommit the value", PREVOTE, PolkaValue(A), (Precommit(A),), Step.PRECOMMIT),
    ("line 36: after precommit no vote", PRECOMMIT, PolkaValue(A), (), Step.PRECOMMIT),
    ("line 36: not before our prevote", PROPOSE, PolkaValue(A), (), Step.PROPOSE),
    ("line 45: precommit nil", PREVOTE, PolkaNil(), (Precommit(None),), Step.PRECOMMIT),
    ("line 44: once", PRECOMMIT, PolkaNil(), (), Step.PRECOMMIT),
    ("line 48: precommit timeout, in any step", PROPOSE, PrecommitAny(), (Arm(Step.PRECOMMIT),), Step.PROPOSE),
    ("line 47: armed once", replace(PREVOTE, precommit_armed=True), PrecommitAny(), (), Step.PREVOTE),
    ("line 51: decide", PREVOTE, PrecommitValue(3, A), (Decided(3, A),), Step.COMMIT),
    ("line 49: decide from a past round", PROPOSE, PrecommitValue(1, A), (Decided(1, A),), Step.COMMIT),
    ("line 56: skip to a later round", PREVOTE, SkipRound(9, False), (Arm(Step.PROPOSE),), Step.PROPOSE),
    ("line 55: never back", PREVOTE, SkipRound(3, False), (), Step.PREVOTE),
    ("line 59: prevote nil", PROPOSE, Timeout(3, Step.PROPOSE), (Prevote(None),), Step.PREVOTE),
    ("line 58: too late", PREVOTE, Timeout(3, Step.PROPOSE), (), Step.PREVOTE),
    ("line 63: precommit nil", PREVOTE, Timeout(3, Step.PREVOTE), (Precommit(None),), Step.PRECOMMIT),
    ("line 62: too late", PRECOMMIT, Timeout(3, Step.PREVOTE), (), Step.PRECOMMIT),
    ("line 67: give the round up", PRECOMMIT, Timeout(3, Step.PRECOMMIT), (NextRound(4),), Step.PRECOMMIT),
    ("line 66: a past round's", PRECOMMIT, Timeout(2, Step.PRECOMMIT), (), Step.PRECOMMIT),
]


@pytest.mark.parametrize(("rule", "state", "event", "outputs", "step"), TABLE, ids=[row[0] for row in TABLE])
def test_rule(rule: str, state: RoundState, event: Input, outputs: tuple[Output, ...], step: Step) -> None:
    after, given = apply(state, event)
    assert given == outputs
    assert after.step is step
    if not outputs and not isinstance(event, PolkaValue):
        assert after is state


def test_a_polka_locks_and_makes_valid_lines_38_to_43() -> None:
    after, _ = apply(PREVOTE, PolkaValue(A))
    assert (after.locked, after.valid) == ((A, 3), (A, 3))


def test_a_polka_after_our_precommit_makes_valid_but_locks_not() -> None:
    """Line 42: else a lock of others stays hidden from the next proposer, and nothing is ever decided."""
    after, outputs = apply(replace(PRECOMMIT, locked=(B, 1), valid=(B, 1)), PolkaValue(A))
    assert (after.locked, after.valid, outputs) == ((B, 1), (A, 3), ())


def test_a_new_round_keeps_lock_and_valid_value_and_arms_again() -> None:
    state = replace(PRECOMMIT, locked=(A, 3), valid=(A, 3), polka_seen=True, prevote_armed=True, precommit_armed=True)
    after, _ = apply(state, StartRound(4, False))
    assert after == replace(PROPOSE, round=4, locked=(A, 3), valid=(A, 3))


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_after_a_decision_nothing_applies(row: tuple[str, RoundState, Input, tuple[Output, ...], Step]) -> None:
    decided = replace(row[1], step=Step.COMMIT, decision=(A, 2))
    assert apply(decided, row[2]) == (decided, ())
