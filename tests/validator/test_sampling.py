"""Beacon, draw, and what spot checks are worth."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talkoo_validator.sampling import PPM, beacon_of, checks_needed, detection_ppm, draw_of, is_drawn

HASH = hashlib.sha256(b"a block").digest()


def test_beacon_and_draw_are_the_documented_hashes() -> None:
    tail = HASH + b"task-1" + b"\x00\x00\x00\x02" + b"\x00\x00\x00\x05"
    assert beacon_of(HASH, "task-1", 2, 5) == hashlib.sha256(b"talkoo/beacon/v1\n" + tail).digest()
    assert draw_of(HASH, "task-1", 2, 5) == hashlib.sha256(b"talkoo/draw/v1\n" + tail).digest()


@pytest.mark.parametrize(
    ("first", "rate_ppm", "drawn"),
    [
        (0, 0, False),
        (0, 1, True),
        (2**64 - 1, PPM, True),
        (2**63 - 1, 500_000, True),
        (2**63, 500_000, False),
        (2**63, 500_001, True),
    ],
)
def test_a_lot_opens_below_the_rate_and_not_at_it(first: int, rate_ppm: int, drawn: bool) -> None:
    assert is_drawn(first.to_bytes(8, "big") + b"\xff" * 24, rate_ppm) is drawn


@given(st.binary(min_size=32, max_size=32), st.integers(0, PPM), st.integers(0, PPM))
def test_a_higher_rate_opens_all_that_a_lower_one_opens(draw: bytes, one: int, other: int) -> None:
    assert is_drawn(draw, max(one, other)) or not is_drawn(draw, min(one, other))


@pytest.mark.parametrize(("cheat_ppm", "checks"), [(10_000, 459), (50_000, 90), (100_000, 44)])
def test_ninety_nine_percent_detection_needs_the_published_numbers_of_checks(cheat_ppm: int, checks: int) -> None:
    assert checks_needed(cheat_ppm, 990_000) == checks
    assert detection_ppm(cheat_ppm, checks) >= 990_000 > detection_ppm(cheat_ppm, checks - 1)


@given(st.integers(1_000, PPM - 1), st.integers(1, PPM - 1))
def test_checks_needed_is_the_least_number(cheat_ppm: int, confidence_ppm: int) -> None:
    checks = checks_needed(cheat_ppm, confidence_ppm)
    assert detection_ppm(cheat_ppm, checks) >= confidence_ppm
    assert checks == 1 or detection_ppm(cheat_ppm, checks - 1) < confidence_ppm
