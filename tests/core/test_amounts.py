"""Integer money: nothing is lost in print, in parsing or in splitting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkoo_core.amounts import MAX_AMOUNT_UTLK, format_tlk, parse_tlk, share_ppm, split_by_weight
from talkoo_core.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "utlk"),
    [
        ("1.5", 1_500_000),
        ("1.5 TLK", 1_500_000),
        ("1500000utlk", 1_500_000),
        ("0", 0),
        ("1,000 TLK", 10**9),
        ("0.000001", 1),
    ],
)
def test_amounts_are_read(text: str, utlk: int) -> None:
    assert parse_tlk(text) == utlk


@pytest.mark.parametrize("text", ["", "-1", "1.0000001", "1e6", "ten", "1 EUR", "99999999999999", "1.5utlk", "NaN"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_tlk(text)
    assert caught.value.code == "bad_amount"


@given(st.integers(0, MAX_AMOUNT_UTLK))
def test_printing_and_reading_lose_nothing(utlk: int) -> None:
    assert parse_tlk(format_tlk(utlk)) == utlk


@given(st.integers(0, 10**18), st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_a_split_sums_to_the_whole(amount: int, weights: list[int]) -> None:
    parts = split_by_weight(amount, weights)
    assert sum(parts) == (amount if any(weights) else 0)
    assert all(part >= 0 for part in parts)
    total = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        assert total == 0 or abs(part - amount * weight / total) <= 1 + amount * 1e-15


def test_rates_round_down() -> None:
    assert share_ppm(999, 500_000) == 499
