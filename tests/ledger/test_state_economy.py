"""The ledger's arithmetic: what cheating earns, what an epoch issues, what power is worth."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talkoo_ledger import economy
from talkoo_ledger.audits import draw_of, is_opened

from talkoo_core.amounts import PPM, UTLK_PER_TLK

TLK = UTLK_PER_TLK
RATES = st.integers(1, PPM)
AMOUNTS = st.integers(0, 10**15)


def cheating_gain(stake_utlk: int, pay_utlk: int, audit_rate_ppm: int, slash_ppm: int, segments: int) -> int:
    """What forging one segment each in many independent tasks earns in sum, by real draws of a real chain's form."""
    chance = random.Random(11)
    gain = 0
    for number in range(segments):
        opened = is_opened(draw_of(chance.randbytes(32), "task-0", 1, number), audit_rate_ppm)
        gain += -stake_utlk * slash_ppm // PPM if opened else pay_utlk
    return gain


@pytest.mark.parametrize("audit_rate_ppm", [100_000, 300_000, 700_000])
@pytest.mark.parametrize("slash_ppm", [200_000, 500_000, 1_000_000])
def test_forging_loses_above_the_required_stake_and_wins_below(audit_rate_ppm: int, slash_ppm: int) -> None:
    pay = 3 * TLK
    stake = economy.required_stake(pay, audit_rate_ppm, slash_ppm)
    assert cheating_gain(stake * 11 // 10, pay, audit_rate_ppm, slash_ppm, 20_000) < 0
    assert cheating_gain(stake * 9 // 10, pay, audit_rate_ppm, slash_ppm, 20_000) > 0


@given(AMOUNTS, RATES, RATES)
def test_required_stake_is_the_least_that_covers_the_expected_gain(pay: int, rate: int, slash: int) -> None:
    stake = economy.required_stake(pay, rate, slash)
    assert stake * slash * rate >= pay * (PPM - rate) * PPM
    assert stake == 0 or (stake - 1) * slash * rate < pay * (PPM - rate) * PPM


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=8), st.integers(0, 10**9), st.integers(0, PPM))
def test_escrow_covers_every_way_to_cut_the_work(parts: list[int], price: int, validation_ppm: int) -> None:
    needed = economy.required_escrow(sum(parts), price, validation_ppm)
    paid = sum(economy.price_of_work(flops, price) for flops in parts)
    assert paid + paid * validation_ppm // PPM <= needed


def test_emission_halves_and_ends() -> None:
    per_epoch = [economy.emission_of_epoch(epoch, 1_000, 10) for epoch in range(1, 200)]
    assert per_epoch[:10] == [1_000] * 10
    assert per_epoch[10:20] == [500] * 10
    assert per_epoch[-1] == 0
    assert sum(per_epoch) < 2 * 1_000 * 10
    assert economy.emission_of_epoch(10**9, 1 << 62, 1) == 0


@given(st.integers(1, 10**18), st.integers(0, 10**15), st.integers(1, 10**9))
def test_power_is_at_least_the_stake_and_below_one_and_a_half_of_it(stake: int, credit: int, half: int) -> None:
    power = economy.voting_power(stake, credit, half)
    assert 2 * stake <= 2 * power < 3 * stake
    assert power <= economy.voting_power(stake, credit + 1, half)


@given(st.integers(1, 10**12), st.lists(st.integers(0, 10**15), min_size=4, max_size=4))
def test_any_one_of_four_equal_stakes_can_die(stake: int, credit_of: list[int]) -> None:
    powers = [economy.voting_power(stake, credit, 1_000) for credit in credit_of]
    for dead in range(4):
        alive = sum(powers) - powers[dead]
        assert 3 * alive > 2 * sum(powers)


@given(st.integers(0, 10**15), RATES)
def test_credit_decays_to_nothing_and_never_below(credit: int, decay_ppm: int) -> None:
    left = economy.decayed(credit, decay_ppm)
    assert 0 <= left < credit or credit == left == 0
    assert economy.decayed(credit, 0) == credit


@given(st.binary(min_size=32, max_size=32), st.integers(0, PPM))
def test_draw_is_always_at_rate_one_and_never_at_rate_zero(draw: bytes, rate: int) -> None:
    assert is_opened(draw, PPM)
    assert not is_opened(draw, 0)
    assert is_opened(draw, rate) == (int.from_bytes(draw[:8], "big") / 2**64 < rate / PPM) or rate > 0
