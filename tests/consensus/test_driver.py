"""The driver as a conversation: what arrives, what we are told to do. Four validators of equal power; f is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest
from talkoo_consensus.driver import (
    MAX_HELD_PROPOSALS,
    MAX_HELD_VOTES_PER_VALIDATOR,
    MAX_PROPOSALS_PER_ROUND,
    BuildValue,
    CheckValue,
    Command,
    Decide,
    Driver,
    EndHeight,
    Event,
    ProposalReceived,
    Redeliver,
    ReportEvidence,
    ScheduleTimeout,
    SignAndSendProposal,
    StartHeight,
    Step,
    TimeoutElapsed,
    Timeouts,
    ValueBuilt,
    VoteReceived,
)
from talkoo_consensus.encoding import block_id_of
from talkoo_consensus.types import NIL_BLOCK_ID, BlockIdFlag, SignedType
from talkoo_consensus.verify import verify_commit

from talkoo_sim.consensus_table import CHAIN_ID, Table, votes_of

PREVOTE, PRECOMMIT = SignedType.PREVOTE, SignedType.PRECOMMIT
_C = TypeVar("_C")


@pytest.fixture
def table() -> Table:
    return Table()


def _only(commands: Sequence[Command], kind: type[_C]) -> _C:
    found = [command for command in commands if isinstance(command, kind)]
    assert len(found) == 1, commands
    return found[0]


def _none(commands: Sequence[Command], kind: type[object]) -> bool:
    return not any(isinstance(command, kind) for command in commands)


def test_a_proposer_builds_signs_and_votes_only_when_its_own_messages_come_back(table: Table) -> None:
    proposer = table.proposer(0)
    driver = Driver(table.validators.validators[proposer].address)
    started = driver.step(StartHeight(1, table.validators))
    assert _only(started, BuildValue).round == 0
    assert _only(started, ScheduleTimeout).duration_ms == Timeouts().propose_ms
    block = table.block()
    proposed = driver.step(ValueBuilt(1, 0, block, block_id_of(block)))
    assert _only(proposed, SignAndSendProposal).proposal.pol_round == -1
    assert votes_of(proposed) == []
    own = driver.step(table.proposal(block))
    assert votes_of(own) == [(PREVOTE, block_id_of(block))]
    assert _none(own, CheckValue)


def test_a_second_value_of_one_round_is_dropped(table: Table) -> None:
    """After a restart the application is asked again and may build another block: it must not be proposed."""
    driver = Driver(table.validators.validators[table.proposer(0)].address)
    driver.step(StartHeight(1, table.validators))
    first, second = table.block(b"a"), table.block(b"b")
    driver.step(ValueBuilt(1, 0, first, block_id_of(first)))
    assert driver.step(ValueBuilt(1, 0, second, block_id_of(second))) == ()


def test_a_height_from_proposal_to_decision(table: Table) -> None:
    table.start()
    block = table.block()
    value = block_id_of(block)
    assert votes_of(table.receive(table.proposal(block))) == [(PREVOTE, value)]
    assert votes_of(table.prevotes([*table.others[:2], table.us], value)) == [(PRECOMMIT, value)]
    decided = table.precommits([*table.others[:2], table.us], value)
    decision = _only(decided, Decide)
    assert (decision.height, decision.round, decision.block_id, decision.block) == (1, 0, value, block)
    verify_commit(CHAIN_ID, table.validators, value, 1, decision.commit)
    assert _only(decided, ScheduleTimeout).step is Step.COMMIT
    assert _none(decided, EndHeight)


def test_late_precommits_after_the_decision_complete_the_commit(table: Table) -> None:
    table.start()
    block = table.block()
    value = block_id_of(block)
    table.receive(table.proposal(block))
    table.precommits([*table.others[:2], table.us], value)
    ended = _only(table.precommits([table.others[2]], value), EndHeight)
    assert [sig.flag for sig in ended.commit.signatures] == [BlockIdFlag.COMMIT] * 4
    assert table.driver.step(TimeoutElapsed(1, 0, Step.COMMIT)) == ()


def test_the_hold_for_late_precommits_ends_by_its_timeout(table: Table) -> None:
    table.start()
    block = table.block()
    table.receive(table.proposal(block))
    table.precommits(table.others, block_id_of(block))
    ended = _only(table.driver.step(TimeoutElapsed(1, 0, Step.COMMIT)), EndHeight)
    assert sum(sig.flag is BlockIdFlag.ABSENT for sig in ended.commit.signatures) == 1


def test_late_proposal_after_precommits_still_decides(table: Table) -> None:
    table.start()
    block = table.block()
    value = block_id_of(block)
    assert _none(table.precommits(table.others, value), Decide)
    assert table.driver.missing == (0, value)
    assert _only(table.receive(table.proposal(block)), Decide).block_id == value
    assert table.driver.missing is None


def test_a_decision_may_come_from_a_past_round(table: Table) -> None:
    table.start()
    block = table.block()
    value = block_id_of(block)
    table.receive(table.proposal(block))
    table.precommits(table.others[:1], None)
    table.prevotes(table.others[:2], None, round_=1)
    assert table.driver.round == 1
    table.precommits([table.others[1], table.us], value)
    assert _only(table.precommits([table.others[2]], value), Decide).round == 0


def test_an_invalid_block_and_an_untimely_one_get_a_nil_prevote(table: Table) -> None:
    table.start()
    assert votes_of(table.receive(table.proposal(table.block()), valid=False)) == [(PREVOTE, NIL_BLOCK_ID)]
    other = Table()
    other.start()
    late = other.proposal(other.block(), timely=False)
    assert votes_of(other.receive(late)) == [(PREVOTE, NIL_BLOCK_ID)]


def test_an_untimely_block_that_others_prevoted_is_precommitted(table: Table) -> None:
    """Timeliness is one clock's opinion; validity is not. Line 36 asks for validity alone."""
    table.start()
    block = table.block()
    table.receive(table.proposal(block, timely=False))
    assert votes_of(table.prevotes(table.others, block_id_of(block))) == [(PRECOMMIT, block_id_of(block))]


def test_no_vote_is_cast_while_the_application_has_not_answered(table: Table) -> None:
    table.start()
    commands = table.driver.step(table.proposal(table.block()))
    assert votes_of(commands) == []
    assert _only(commands, CheckValue).round == 0
    assert votes_of(table.driver.step(TimeoutElapsed(1, 0, Step.PROPOSE))) == [(PREVOTE, NIL_BLOCK_ID)]


def test_timeouts_lead_through_undecided_votes_to_the_next_round_and_grow(table: Table) -> None:
    table.start()
    assert votes_of(table.driver.step(TimeoutElapsed(1, 0, Step.PROPOSE))) == [(PREVOTE, NIL_BLOCK_ID)]
    assert votes_of(table.prevotes(table.others, None)) == [(PRECOMMIT, NIL_BLOCK_ID)]
    other = block_id_of(table.block())
    armed = table.precommits(table.others[:2], None) + table.precommits(table.others[2:], other)
    assert [(c.step, c.duration_ms) for c in armed if isinstance(c, ScheduleTimeout)] == [(Step.PRECOMMIT, 1000)]
    following = _only(table.driver.step(TimeoutElapsed(1, 0, Step.PRECOMMIT)), ScheduleTimeout)
    assert (following.round, following.step, following.duration_ms) == (1, Step.PROPOSE, 3500)


def test_a_round_of_nil_votes_alone_is_left_at_once(table: Table) -> None:
    """With 2f+1 nil prevotes no value can have a polka there, so waiting could show nothing."""
    table.start()
    table.prevotes(table.others, None)
    table.driver.step(TimeoutElapsed(1, 0, Step.PROPOSE))
    armed = _only(table.precommits(table.others, None), ScheduleTimeout)
    assert (armed.round, armed.step) == (1, Step.PROPOSE)


def test_nil_precommits_do_not_end_a_round_that_may_hide_a_lock(table: Table) -> None:
    table.start()
    block = block_id_of(table.block())
    table.prevotes(table.others[:1], block)
    table.prevotes(table.others[1:], None)
    table.driver.step(TimeoutElapsed(1, 0, Step.PROPOSE))
    table.driver.step(TimeoutElapsed(1, 0, Step.PREVOTE))
    table.precommits(table.others, None)
    assert table.driver.round == 0


def test_split_prevotes_arm_the_prevote_timeout_once(table: Table) -> None:
    table.start()
    block = table.block()
    table.receive(table.proposal(block))
    first = table.prevotes([table.us, table.others[0]], block_id_of(block)) + table.prevotes([table.others[1]], None)
    assert _only(first, ScheduleTimeout).step is Step.PREVOTE
    assert _none(table.prevotes([table.others[2]], None), ScheduleTimeout)
    assert votes_of(table.driver.step(TimeoutElapsed(1, 0, Step.PREVOTE))) == [(PRECOMMIT, NIL_BLOCK_ID)]


def test_votes_of_f_plus_one_skip_to_their_round(table: Table) -> None:
    table.start()
    assert table.prevotes(table.others[:1], None, round_=5) == ()
    skipped = table.precommits(table.others[1:2], None, round_=5)
    assert table.driver.round == 5
    assert _only(skipped, ScheduleTimeout).step is Step.PROPOSE


def test_a_lock_is_kept_until_a_later_polka(table: Table) -> None:
    table.start()
    locked, other = table.block(b"a"), table.block(b"b")
    table.receive(table.proposal(locked))
    table.prevotes(table.others, block_id_of(locked))
    table.driver.step(TimeoutElapsed(1, 0, Step.PRECOMMIT))
    assert votes_of(table.receive(table.proposal(other, round_=1))) == [(PREVOTE, NIL_BLOCK_ID)]
    assert table.driver.locked == (block_id_of(locked), 0)
    table.prevotes(table.others, block_id_of(other), round_=1)
    table.driver.step(TimeoutElapsed(1, 1, Step.PRECOMMIT))
    again = table.driver.step(table.proposal(other, round_=2, pol_round=1))
    assert votes_of(again) == [(PREVOTE, block_id_of(other))]


def test_a_reproposal_waits_for_the_prevotes_it_claims(table: Table) -> None:
    table.start()
    block = table.block()
    value = block_id_of(block)
    table.precommits(table.others, None)
    table.driver.step(TimeoutElapsed(1, 0, Step.PRECOMMIT))
    assert votes_of(table.receive(table.proposal(block, round_=1, pol_round=0))) == []
    assert votes_of(table.prevotes(table.others, value, round_=0)) == [(PREVOTE, value)]


def test_a_proposer_with_a_valid_value_proposes_it_again(table: Table) -> None:
    us = table.proposer(1)
    table.driver = Driver(table.validators.validators[us].address)
    table.start()
    block = table.block()
    value = block_id_of(block)
    table.receive(table.proposal(block))
    table.prevotes([i for i in range(4) if i != us], value)
    given = _only(table.driver.step(TimeoutElapsed(1, 0, Step.PRECOMMIT)), SignAndSendProposal)
    assert (given.proposal.pol_round, given.proposal.block_id, given.block) == (0, value, block)
    assert given.proposal.timestamp_ns == block.header.time_ns


def test_a_double_vote_is_evidence_once_and_counts_for_both_values(table: Table) -> None:
    table.start()
    block = table.block()
    value = block_id_of(block)
    table.receive(table.proposal(block))
    cheat = table.others[0]
    table.prevotes([cheat], None)
    evidence = _only(table.prevotes([cheat], value), ReportEvidence).votes
    assert {evidence.first.block_id, evidence.second.block_id} == {value, NIL_BLOCK_ID}
    assert _none(table.prevotes([cheat], value), ReportEvidence)
    assert votes_of(table.prevotes([table.others[1], table.us], value)) == [(PRECOMMIT, value)]


def test_messages_of_the_next_height_come_back_when_it_starts(table: Table) -> None:
    """They come back as commands, so that the log of their height holds them and a restart stands on the same."""
    early = [VoteReceived(table.vote(index, PREVOTE, None)) for index in table.others]
    assert [table.driver.step(event) for event in early] == [(), (), ()]
    started = table.start()
    assert [command.message for command in started if isinstance(command, Redeliver)] == early
    assert table.driver.messages() == ()


def test_what_is_held_for_the_next_height_is_bounded(table: Table) -> None:
    for round_ in range(50):
        table.driver.step(VoteReceived(table.vote(0, PREVOTE, None, round_=round_)))
        table.driver.step(table.proposal(table.block(b"%d" % round_)))
    back = [command.message for command in table.start() if isinstance(command, Redeliver)]
    votes = sum(isinstance(message, VoteReceived) for message in back)
    assert (votes, len(back) - votes) == (MAX_HELD_VOTES_PER_VALIDATOR, MAX_HELD_PROPOSALS)


def test_a_proposer_that_proposes_many_blocks_is_heard_for_two_and_for_what_is_voted(table: Table) -> None:
    table.start()
    blocks = [table.block(b"%d" % number) for number in range(10)]
    for block in blocks:
        table.driver.step(table.proposal(block))
    assert len(table.driver.proposed(0)) == MAX_PROPOSALS_PER_ROUND
    wanted = block_id_of(blocks[9])
    table.precommits(table.others, wanted)
    assert _only(table.receive(table.proposal(blocks[9])), Decide).block_id == wanted


def test_a_follower_decides_and_votes_nothing(table: Table) -> None:
    table.driver = Driver(b"\x01" * 20)
    table.start()
    block = table.block()
    value = block_id_of(block)
    commands = table.receive(table.proposal(block)) + table.prevotes(table.others, value)
    assert votes_of(commands) == []
    assert _only(table.precommits(table.others, value), Decide).block_id == value


def test_a_start_of_a_height_that_is_not_later_is_ignored(table: Table) -> None:
    """The shell may fetch a decided block while the hold for late precommits still runs."""
    table.driver.step(StartHeight(4, table.validators))
    for height in (4, 3, 1):
        assert table.driver.step(StartHeight(height, table.validators)) == ()
    assert table.driver.height == 4


def test_votes_of_strangers_and_of_other_heights_change_nothing(table: Table) -> None:
    table.start()
    for height in (3, 9):
        assert table.driver.step(VoteReceived(table.vote(0, PREVOTE, None, height=height))) == ()
    assert table.driver.messages() == ()


def test_the_same_events_give_the_same_commands_after_a_restart(table: Table) -> None:
    block = table.block()
    value = block_id_of(block)
    events: list[Event] = [
        StartHeight(1, table.validators),
        table.proposal(block),
        *(VoteReceived(table.vote(index, PREVOTE, value)) for index in table.others),
        TimeoutElapsed(1, 0, Step.PRECOMMIT),
        *(VoteReceived(table.vote(index, PRECOMMIT, value)) for index in table.others),
    ]
    address = table.validators.validators[table.us].address
    runs = []
    for _ in range(2):
        driver = Driver(address)
        runs.append([driver.step(event) for event in events])
    assert runs[0] == runs[1]


def test_messages_bring_a_peer_that_connects_late_to_the_decision(table: Table) -> None:
    table.start()
    block = table.block()
    value = block_id_of(block)
    table.receive(table.proposal(block))
    table.prevotes(table.others, value)
    table.precommits(table.others, value)
    peer = Table()
    peer.start()
    commands: list[Command] = []
    for message in table.driver.messages():
        step = peer.receive(message) if isinstance(message, ProposalReceived) else peer.driver.step(message)
        commands += step
    assert _only(commands, Decide).block_id == value
