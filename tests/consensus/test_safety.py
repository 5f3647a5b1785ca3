"""What safety and liveness rest on, claim by claim: where each is tested, and the tests that stand nowhere else.

The claims are those of arXiv 1807.04938 and of faults that CometBFT and other implementations have had.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from talkoo_consensus.chain import make_block
from talkoo_consensus.driver import (
    Command,
    Decide,
    Driver,
    EndHeight,
    ScheduleTimeout,
    SignAndSendProposal,
    StartHeight,
    Step,
    TimeoutElapsed,
    Timeouts,
    VoteReceived,
)
from talkoo_consensus.encoding import block_id_of, encode_vote
from talkoo_consensus.round import HASTY_ROUNDS, NextRound, NilRound, RoundState, apply
from talkoo_consensus.types import EMPTY_COMMIT, NIL_BLOCK_ID, BlockIdFlag, Commit, CommitSig, SignedType
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_consensus.verify import verify_commit, verify_proposal
from talkoo_ledger.intake import Intake

from talkoo_core.errors import InvalidInput
from talkoo_core.signing import PrivateKey
from talkoo_runtime.clock import SystemClock
from talkoo_sim.consensus_table import CHAIN_ID, TIME_NS, Table, votes_of

PREVOTE, PRECOMMIT = SignedType.PREVOTE, SignedType.PRECOMMIT

ROUND, DRIVER, VOTES, CHAIN, VALIDATORS = (
    f"test_{name}.py" for name in ("round", "driver", "votes", "chain", "validators")
)
EVIDENCE, ENCODING, ACCOUNTABILITY, HERE = (
    "test_evidence.py",
    "test_encoding.py",
    "test_accountability.py",
    "test_safety.py",
)

CLAIMS: dict[str, list[tuple[str, str]]] = {
    "a lock gives way to prevotes of its own round or a later one (lockedRound <= vr)": [
        (ROUND, "test_rule"),
        (DRIVER, "test_a_lock_is_kept_until_a_later_polka"),
        (DRIVER, "test_a_reproposal_waits_for_the_prevotes_it_claims"),
    ],
    "the valid value is updated after the precommit too, and proposed again (hidden lock)": [
        (ROUND, "test_a_polka_after_our_precommit_makes_valid_but_locks_not"),
        (DRIVER, "test_a_proposer_with_a_valid_value_proposes_it_again"),
        (HERE, "test_a_lock_that_is_hidden_from_a_proposer_that_precommitted_nil_is_proposed_again"),
    ],
    "nil is precommitted and decides nothing": [
        (DRIVER, "test_split_prevotes_arm_the_prevote_timeout_once"),
        (HERE, "test_precommits_for_nil_decide_nothing"),
    ],
    "timeouts are armed once in a round, grow with it, and begin anew with each height": [
        (DRIVER, "test_split_prevotes_arm_the_prevote_timeout_once"),
        (HERE, "test_timeouts_are_armed_once_grow_with_the_round_and_begin_anew_with_the_height"),
    ],
    "a round of nil alone is left at once, but not for ever": [
        (DRIVER, "test_a_round_of_nil_votes_alone_is_left_at_once"),
        (DRIVER, "test_nil_precommits_do_not_end_a_round_that_may_hide_a_lock"),
        (HERE, "test_rounds_in_which_nothing_is_acceptable_slow_down"),
    ],
    "a decision may come from a past round": [
        (DRIVER, "test_a_decision_may_come_from_a_past_round"),
        (DRIVER, "test_late_proposal_after_precommits_still_decides"),
    ],
    "f+1 of the power in a later round skip to it": [
        (DRIVER, "test_votes_of_f_plus_one_skip_to_their_round"),
        (HERE, "test_rounds_are_skipped_by_power_above_a_third_and_each_voter_counts_once"),
    ],
    "votes that found no room are heard again": [
        (HERE, "test_prevotes_that_found_no_room_are_heard_again_in_another_round")
    ],
    "a quorum is more than 2/3 of the power in integers, with skewed stakes": [
        (VOTES, "test_thresholds_are_exact"),
        (VOTES, "test_two_quorums_share_more_than_a_third"),
        (HERE, "test_quorums_are_power_and_not_heads"),
    ],
    "proposers rotate as CometBFT's, a joiner begins at -1.125 P": [
        (ENCODING, "test_proposers_rotate_and_validators_join_and_leave_as_in_cometbft"),
        (VALIDATORS, "test_everyone_proposes_exactly_in_proportion_to_power"),
        (HERE, "test_a_joiner_begins_behind_everybody_and_leaving_gains_nothing"),
        (HERE, "test_rotation_goes_on_when_the_proposer_is_removed"),
    ],
    "times are the proposer's: judged by clocks only when fresh, always forward": [
        (CHAIN, "test_a_time_is_believed_within_precision_and_delay"),
        (CHAIN, "test_later_rounds_believe_slower_messages"),
        (DRIVER, "test_an_untimely_block_that_others_prevoted_is_precommitted"),
        (HERE, "test_a_value_that_is_proposed_again_is_not_judged_by_the_clock_again"),
    ],
    "a driver is its events: after a crash it stands where it stood": [
        (DRIVER, "test_the_same_events_give_the_same_commands_after_a_restart")
    ],
    "evidence with another time than its block's is no evidence (CVE-2021-21271)": [
        (EVIDENCE, "test_evidence_that_proves_nothing_is_refused_from_peers_and_in_blocks")
    ],
    "a place in a commit is its validator's, whatever address it names": [
        (CHAIN, "test_a_commit_with_a_wrong_place_is_refused"),
        (HERE, "test_a_commit_that_counts_one_validator_twice_or_nil_for_the_block_is_refused"),
    ],
    "a proposal may rest on earlier rounds only": [
        (HERE, "test_a_proposal_that_rests_on_its_own_or_a_later_round_is_refused")
    ],
    "memory is bounded whatever one validator sends": [
        (VOTES, "test_one_validator_cannot_fill_the_keeper_with_rounds"),
        (VOTES, "test_one_validator_cannot_fill_a_round_with_values"),
        (DRIVER, "test_what_is_held_for_the_next_height_is_bounded"),
        (DRIVER, "test_a_proposer_that_proposes_many_blocks_is_heard_for_two_and_for_what_is_voted"),
    ],
    "a fork names a third of the power and no correct validator": [
        (ACCOUNTABILITY, "test_a_fork_names_a_third_of_the_power_and_never_a_correct_validator")
    ],
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_claim_has_its_tests(claim: str) -> None:
    for file, name in CLAIMS[claim]:
        tree = ast.parse((Path(__file__).parent / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file} has no {name}"


@pytest.fixture
def table() -> Table:
    return Table()


def _timeouts(commands: Sequence[Command]) -> list[tuple[Step, int, int]]:
    return [(c.step, c.round, c.duration_ms) for c in commands if isinstance(c, ScheduleTimeout)]


def test_a_lock_that_is_hidden_from_a_proposer_that_precommitted_nil_is_proposed_again(table: Table) -> None:
    """One node alone saw the prevotes in time and locked. Without line 42's update after the precommit, the others
    would propose new values that it never accepts, and with one faulty node nothing would be decided any more."""
    us = table.proposer(1)
    table.driver = Driver(table.validators.validators[us].address)
    others = [index for index in range(4) if index != us]
    table.start()
    block = table.block()
    value = block_id_of(block)
    assert votes_of(table.receive(table.proposal(block))) == [(PREVOTE, value)]
    table.prevotes([us, others[0]], value)
    table.prevotes([others[1]], None)
    assert votes_of(table.driver.step(TimeoutElapsed(1, 0, Step.PREVOTE))) == [(PRECOMMIT, NIL_BLOCK_ID)]
    assert votes_of(table.prevotes([others[2]], value)) == []
    assert table.driver.locked is None
    given = table.driver.step(TimeoutElapsed(1, 0, Step.PRECOMMIT))
    (proposal,) = [c.proposal for c in given if isinstance(c, SignAndSendProposal)]
    assert (proposal.block_id, proposal.pol_round, proposal.round) == (value, 0, 1)


def test_precommits_for_nil_decide_nothing(table: Table) -> None:
    table.start()
    table.receive(table.proposal(table.block()))
    commands = table.precommits(range(4), None)
    assert not [c for c in commands if isinstance(c, Decide | EndHeight)]
    assert table.driver.decided is None


def test_timeouts_are_armed_once_grow_with_the_round_and_begin_anew_with_the_height() -> None:
    table = Table()
    timeouts = Timeouts(1000, 100, 500, 50, 300, 30, 20)
    table.driver = Driver(table.validators.validators[table.us].address, timeouts)
    assert _timeouts(table.start()) == [(Step.PROPOSE, 0, 1000)]
    value = block_id_of(table.block())
    for round_ in range(3):
        assert votes_of(table.driver.step(TimeoutElapsed(1, round_, Step.PROPOSE))) == [(PREVOTE, NIL_BLOCK_ID)]
        armed = table.prevotes(table.others[:2], value, round_) + table.prevotes(
            [table.others[2], table.us], None, round_
        )
        assert _timeouts(armed) == [(Step.PREVOTE, round_, 500 + 50 * round_)]
        assert _timeouts(table.driver.step(TimeoutElapsed(1, round_, Step.PREVOTE))) == []
        armed = table.precommits([*table.others, table.us], None, round_)
        assert _timeouts(armed) == [(Step.PRECOMMIT, round_, 300 + 30 * round_)]
        following = table.driver.step(TimeoutElapsed(1, round_, Step.PRECOMMIT))
        assert _timeouts(following) == [(Step.PROPOSE, round_ + 1, 1000 + 100 * (round_ + 1))]
        for step in (Step.PROPOSE, Step.PREVOTE, Step.PRECOMMIT):
            assert table.driver.step(TimeoutElapsed(1, round_, step)) == (), "late ones do nothing"
    assert _timeouts(table.driver.step(StartHeight(2, table.validators)))[0] == (Step.PROPOSE, 0, 1000)


def test_rounds_in_which_nothing_is_acceptable_slow_down() -> None:
    """Where every proposal is refused at once, haste would turn a fault into thousands of rounds and a full log."""
    hasty, outputs = apply(RoundState(1, HASTY_ROUNDS - 1, Step.PRECOMMIT), NilRound())
    assert outputs == (NextRound(HASTY_ROUNDS),)
    slow = RoundState(1, HASTY_ROUNDS, Step.PRECOMMIT)
    assert apply(slow, NilRound()) == (slow, ())
    assert hasty.locked is None


@pytest.mark.parametrize(
    ("powers", "prevoters", "precommitters", "skips"),
    [
        ((10, 10, 10, 10), [0], [0], False),
        ((10, 10, 10, 10), [0], [1], True),
        ((1, 1, 1), [0], [], False),
        ((34, 33, 33), [0], [], True),
        ((33, 33, 33, 1), [0], [], False),
        ((33, 33, 33, 1), [0], [3], True),
        ((97, 1, 1, 1), [1, 2, 3], [1, 2, 3], False),
        ((97, 1, 1, 1), [0], [], True),
    ],
)
def test_rounds_are_skipped_by_power_above_a_third_and_each_voter_counts_once(
    powers: tuple[int, ...], prevoters: list[int], precommitters: list[int], skips: bool
) -> None:
    table = Table(powers)
    table.start()
    table.prevotes(prevoters, None, round_=7)
    table.precommits(precommitters, None, round_=7)
    assert (table.driver.round == 7) is skips


@pytest.mark.parametrize(
    ("powers", "voters", "decides"),
    [
        ((1, 1, 1), [0, 1], False),
        ((1, 1, 1), [0, 1, 2], True),
        ((97, 1, 1, 1), [0], True),
        ((97, 1, 1, 1), [1, 2, 3], False),
        ((34, 33, 33), [0, 1], True),
        ((34, 33, 33), [1, 2], False),
        ((50, 30, 15, 5), [0, 2], False),
        ((50, 30, 15, 5), [0, 1], True),
        ((50, 30, 15, 5), [1, 2, 3], False),
        ((6 * 10**17, 3 * 10**17 - 1, 1), [0], False),
        ((6 * 10**17 + 1, 3 * 10**17 - 2, 1), [0], True),
    ],
)
def test_quorums_are_power_and_not_heads(powers: tuple[int, ...], voters: list[int], decides: bool) -> None:
    table = Table(powers)
    table.start()
    block = table.block()
    table.receive(table.proposal(block))
    decided = [c for c in table.precommits(voters, block_id_of(block)) if isinstance(c, Decide)]
    assert bool(decided) is decides
    for each in decided:
        verify_commit(CHAIN_ID, table.validators, each.block_id, 1, each.commit)


def test_prevotes_that_found_no_room_are_heard_again_in_another_round(table: Table) -> None:
    """A node that was cut off hears the newest rounds first, which take all the room it has for rounds to come. Of the
    prevotes in between it keeps none; a proposal that rests on them must still find them when peers say them again."""
    table.start()
    intake = Intake(table.driver, SystemClock())

    def hear(index: int, round_: int, value: object, type_: SignedType = PREVOTE) -> bool:
        vote = table.vote(index, type_, value, round_)  # type: ignore[arg-type]
        heard = intake.vote(encode_vote(vote), table.state)
        if heard is not None:
            table.driver.step(heard)
        return heard is not None

    block = table.block()
    value = block_id_of(block)
    for index in table.others[:1]:
        assert all(hear(index, round_, None) for round_ in (8, 9))
    assert hear(table.others[0], 5, value), "verified, but there is no room for it"
    assert not table.driver.holds(table.vote(table.others[0], PREVOTE, value, 5))
    assert not hear(table.others[0], 5, value), "known: not judged again while nothing changed"
    assert hear(table.others[1], 8, None)
    assert table.driver.round == 8
    assert all(hear(index, 5, value) for index in table.others)
    assert not any(hear(index, 5, value) for index in table.others)
    again = table.receive(table.proposal(block, round_=8, pol_round=5))
    assert votes_of(again) == [(PREVOTE, value)]


KEYS = [PrivateKey.from_seed(bytes([number]) * 32).public for number in range(6)]


def _set(*powers: int) -> ValidatorSet:
    return ValidatorSet.create([Validator.of(key.raw, power) for key, power in zip(KEYS, powers, strict=False)])


def _priority(validators: ValidatorSet, key: int) -> int:
    found = validators.find(KEYS[key].address)
    assert found is not None
    return found[1].proposer_priority


def test_a_joiner_begins_behind_everybody_and_leaving_gains_nothing() -> None:
    before = _set(10, 10, 10, 10)
    joined = before.update([Validator.of(KEYS[4].raw, 10)])
    assert _priority(joined, 4) - _priority(joined, 0) == -(50 + 50 // 8) - _priority(before, 0)
    assert all(_priority(joined, 4) < _priority(joined, key) for key in range(4))
    validators, proposed = before, 0
    for _ in range(40):  # leaves after each of its own blocks would come due, and joins again
        validators = validators.next_height([Validator.of(KEYS[0].raw, 0)])
        validators = validators.next_height([Validator.of(KEYS[0].raw, 10)])
        proposed += validators.proposer_address == KEYS[0].address
    assert proposed == 0


def test_rotation_goes_on_when_the_proposer_is_removed() -> None:
    validators = _set(10, 20, 30)
    for _ in range(2):
        gone = validators.proposer
        validators = validators.next_height([replace(gone, power=0)])
        assert validators.find(gone.address) is None
        assert validators.find(validators.proposer.address) is not None
    assert len(validators) == 1


def test_a_value_that_is_proposed_again_is_not_judged_by_the_clock_again(table: Table) -> None:
    """Its time is that of its first round. Whoever refused it now would keep a decided value from being decided."""
    table.start()
    block = table.block()
    value = block_id_of(block)
    table.prevotes(table.others, value)
    table.driver.step(TimeoutElapsed(1, 0, Step.PROPOSE))
    table.precommits(table.others[:2], None)
    table.precommits(table.others[2:], value)
    table.driver.step(TimeoutElapsed(1, 0, Step.PRECOMMIT))
    assert table.driver.round == 1
    assert votes_of(table.receive(table.proposal(block, 1, 0, timely=False))) == [(PREVOTE, value)]
    fresh = table.block(b"fresh")
    table.driver.step(TimeoutElapsed(1, 1, Step.PRECOMMIT))
    table.prevotes(table.others, None, 2)
    assert votes_of(table.receive(table.proposal(fresh, 2, -1, timely=False)))[0] == (PREVOTE, NIL_BLOCK_ID)


def test_a_commit_that_counts_one_validator_twice_or_nil_for_the_block_is_refused(table: Table) -> None:
    value = block_id_of(table.block())
    signed = [table.vote(index, PRECOMMIT, value) for index in range(4)]
    nil = table.vote(2, PRECOMMIT, None)
    places = [
        CommitSig(BlockIdFlag.COMMIT, vote.validator_address, vote.timestamp_ns, vote.signature) for vote in signed
    ]
    absent = CommitSig(BlockIdFlag.ABSENT)
    for name, given in {
        "twice": [places[0], places[1], places[1], absent],
        "two of four and a nil": [
            places[0],
            places[1],
            CommitSig(BlockIdFlag.NIL, nil.validator_address, nil.timestamp_ns, nil.signature),
            absent,
        ],
        "nil that says it is for the block": [
            places[0],
            places[1],
            CommitSig(BlockIdFlag.COMMIT, nil.validator_address, nil.timestamp_ns, nil.signature),
            absent,
        ],
        "one under another's address": [
            places[0],
            places[1],
            replace(places[2], validator_address=places[3].validator_address),
            absent,
        ],
    }.items():
        with pytest.raises(InvalidInput) as error:
            verify_commit(CHAIN_ID, table.validators, value, 1, Commit(1, 0, value, tuple(given)))
        assert error.value.code == "bad_commit", name
    verify_commit(CHAIN_ID, table.validators, value, 1, Commit(1, 0, value, (*places[:3], absent)))


@pytest.mark.parametrize("pol_round", [2, 3, -2])
def test_a_proposal_that_rests_on_its_own_or_a_later_round_is_refused(table: Table, pol_round: int) -> None:
    proposer = table.validators.proposer_of_round(2)
    bad = table.proposal(table.block(), 2, pol_round).proposal
    assert not verify_proposal(bad, CHAIN_ID, proposer)
    assert verify_proposal(table.proposal(table.block(), 2, 1).proposal, CHAIN_ID, proposer)


def test_a_clock_that_stands_still_moves_block_times_forward_all_the_same(table: Table) -> None:
    block = make_block(table.state, [], EMPTY_COMMIT, TIME_NS - 5 * 10**9, table.validators.proposer.address)
    assert block.header.time_ns == table.state.last_time_ns + 1


def test_a_vote_is_held_only_as_it_was_signed(table: Table) -> None:
    table.start()
    vote = table.vote(1, PREVOTE, None)
    table.driver.step(VoteReceived(vote))
    assert table.driver.holds(vote)
    assert not table.driver.holds(replace(vote, timestamp_ns=vote.timestamp_ns + 1))
    early = table.vote(1, PREVOTE, None, height=2)
    table.driver.step(VoteReceived(early))
    assert table.driver.holds(early)
