"""Quorums in integers, and the bounds on what a peer can make us keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talkoo_consensus.types import NIL_BLOCK_ID, BlockId, SignedType, Vote
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_consensus.votes import MAX_FUTURE_ROUNDS, MAX_VALUES_PER_ROUND, VoteKeeper, is_one_honest, is_quorum

from talkoo_core.signing import PrivateKey

KEYS = [PrivateKey.from_seed(bytes([i]) * 32).public for i in range(7)]


def _value(number: int) -> BlockId:
    return BlockId(bytes([number]) * 32, 1, bytes([number]) * 32)


def _keeper(powers: list[int]) -> VoteKeeper:
    members = [Validator.of(key.raw, power) for key, power in zip(KEYS, powers, strict=False)]
    return VoteKeeper(5, ValidatorSet.create(members))


def _vote(keeper: VoteKeeper, index: int, round_: int, value: BlockId, type_: SignedType = SignedType.PREVOTE) -> Vote:
    return Vote(type_, 5, round_, value, 0, keeper.validators.validators[index].address, index)


@pytest.mark.parametrize(
    ("power", "total", "quorum", "honest"),
    [
        (2, 3, False, True),
        (3, 3, True, True),
        (3, 4, True, True),
        (2, 4, False, True),
        (1, 3, False, False),
        (67, 100, True, True),
        (66, 100, False, True),
        (33, 100, False, False),
        (34, 100, False, True),
        (2 * 10**18, 3 * 10**18, False, True),
        (2 * 10**18 + 1, 3 * 10**18, True, True),
    ],
)
def test_thresholds_are_exact(power: int, total: int, quorum: bool, honest: bool) -> None:
    assert is_quorum(power, total) is quorum
    assert is_one_honest(power, total) is honest


@given(st.integers(1, 10**18), st.integers(0, 10**18), st.integers(0, 10**18))
def test_two_quorums_share_more_than_a_third(total: int, first: int, second: int) -> None:
    first, second = min(first, total), min(second, total)
    if is_quorum(first, total) and is_quorum(second, total):
        assert is_one_honest(first + second - total, total)


@given(st.lists(st.integers(1, 50), min_size=4, max_size=7), st.data())
def test_counts_are_those_of_a_plain_sum(powers: list[int], data: st.DataObject) -> None:
    keeper = _keeper(powers)
    cast = data.draw(
        st.lists(st.tuples(st.integers(0, len(powers) - 1), st.integers(0, 1), st.integers(0, 1)), max_size=30)
    )
    log: set[tuple[int, int, BlockId]] = set()
    for index, round_, number in cast:
        value = NIL_BLOCK_ID if number == 0 else _value(number)
        keeper.add(_vote(keeper, index, round_, value), 1, proposed=True)
        log.add((index, round_, value))
    power = {index: v.power for index, v in enumerate(keeper.validators.validators)}
    for round_ in (0, 1):
        for value in (NIL_BLOCK_ID, _value(1)):
            plain = sum(power[i] for i, r, v in log if (r, v) == (round_, value))
            assert keeper.has_quorum(round_, SignedType.PREVOTE, value) is is_quorum(plain, sum(powers))
        anyone = sum(power[i] for i in {i for i, r, _ in log if r == round_})
        assert keeper.has_quorum_of_any(round_, SignedType.PREVOTE) is is_quorum(anyone, sum(powers))


def test_one_validator_cannot_fill_the_keeper_with_rounds() -> None:
    keeper = _keeper([10, 10, 10, 10])
    for round_ in range(2, 500):
        keeper.add(_vote(keeper, 0, round_, NIL_BLOCK_ID), 0, proposed=False)
    assert keeper.rounds() == [498, 499]
    assert len(keeper.rounds()) == MAX_FUTURE_ROUNDS
    assert not keeper.add(_vote(keeper, 0, 3, NIL_BLOCK_ID), 0, proposed=False)[0]
    assert keeper.skip_round(0) is None


def test_one_validator_cannot_fill_a_round_with_values() -> None:
    keeper = _keeper([10, 10, 10, 10])
    kept = [keeper.add(_vote(keeper, 0, 0, _value(n)), 0, proposed=False)[0] for n in range(1, 100)]
    assert sum(kept) == MAX_VALUES_PER_ROUND
    assert keeper.add(_vote(keeper, 0, 0, _value(100)), 0, proposed=True)[0]


def test_rounds_that_make_room_are_uncounted_again() -> None:
    keeper = _keeper([10, 10, 10, 10])
    for index in (0, 1):
        keeper.add(_vote(keeper, index, 2, NIL_BLOCK_ID), 0, proposed=False)
    assert keeper.skip_round(0) == 2
    for round_ in (7, 8):
        keeper.add(_vote(keeper, 0, round_, NIL_BLOCK_ID), 0, proposed=False)
    assert keeper.skip_round(0) is None


def test_evidence_names_both_votes_once() -> None:
    keeper = _keeper([10, 10, 10, 10])
    first, second = _vote(keeper, 2, 0, _value(1)), _vote(keeper, 2, 0, _value(2))
    assert keeper.add(first, 0, proposed=True) == (True, None)
    changed, evidence = keeper.add(second, 0, proposed=True)
    assert changed
    assert evidence is not None
    assert (evidence.first, evidence.second) == (first, second)
    assert keeper.add(_vote(keeper, 2, 0, _value(3)), 0, proposed=True) == (True, None)


def test_a_vote_under_anothers_index_is_not_counted() -> None:
    keeper = _keeper([10, 10, 10, 10])
    stolen = Vote(SignedType.PREVOTE, 5, 0, NIL_BLOCK_ID, 0, keeper.validators.validators[1].address, 2)
    assert keeper.add(stolen, 0, proposed=False) == (False, None)
