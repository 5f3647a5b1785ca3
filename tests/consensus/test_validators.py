"""Properties of the proposer rotation that hold for every set; its exact steps are held against CometBFT's vectors."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from talkoo_consensus.validators import PRIORITY_WINDOW_FACTOR, Validator, ValidatorSet

from talkoo_core.signing import PrivateKey

KEYS = [PrivateKey.from_seed(bytes([i]) * 32).public.raw for i in range(6)]
POWERS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def _set(powers: list[int]) -> ValidatorSet:
    return ValidatorSet.create([Validator.of(key, power) for key, power in zip(KEYS, powers, strict=False)])


@settings(deadline=None, max_examples=50)
@given(POWERS)
def test_everyone_proposes_exactly_in_proportion_to_power(powers: list[int]) -> None:
    validators = _set(powers)
    proposed: Counter[bytes] = Counter()
    for _ in range(validators.total_power):
        proposed[validators.proposer_address] += 1
        validators = validators.rotate()
    assert proposed == {v.address: v.power for v in validators.validators}


@settings(deadline=None, max_examples=50)
@given(POWERS, st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), max_size=8))
def test_priorities_stay_centred_within_their_window(powers: list[int], changes: list[tuple[int, int]]) -> None:
    validators = _set(powers)
    for member, power in changes:
        change = Validator.of(KEYS[member], power)
        present = validators.find(change.address) is not None
        if power == 0 and (not present or len(validators) == 1):
            continue
        validators = validators.update([change])
        priorities = [v.proposer_priority for v in validators.validators]
        assert max(priorities) - min(priorities) <= PRIORITY_WINDOW_FACTOR * validators.total_power
        assert 0 <= sum(priorities) < len(priorities)
        validators = validators.rotate()


@given(POWERS)
def test_rounds_of_a_height_are_the_rotations_after_its_first(powers: list[int]) -> None:
    validators = _set(powers)
    assert validators.proposer_of_round(0) == validators.proposer
    assert validators.proposer_of_round(3).address == validators.rotate().rotate().rotate().proposer_address
