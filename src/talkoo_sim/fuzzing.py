"""What tests fuzz with: how many examples, and bytes that are almost right.

`TALKOO_FUZZ_EXAMPLES=20` runs twenty times as many, drawn anew each time; by default every run draws the same ones, so
that what fails in one place fails in all.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("TALKOO_FUZZ_EXAMPLES", "1"))
MOST_CHANGES = 4
MOST_INSERTED_BYTES = 12


def fuzzed(examples: int) -> settings:
    """Settings of a fuzz test: so many examples, or `TIMES` as many."""
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """One of the originals after a few changes: bytes flipped, cut out, put in, doubled, or the end cut off."""
    data = bytearray(draw(originals))
    for _ in range(draw(st.integers(1, MOST_CHANGES))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(1, MOST_INSERTED_BYTES))
        kind = draw(st.sampled_from(("flip", "cut", "put", "double", "end")))
        if kind == "flip" and data:
            data[place] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del data[place : place + length]
        elif kind == "put":
            data[place:place] = draw(st.binary(min_size=1, max_size=length))
        elif kind == "double":
            data[place:place] = data[place : place + length]
        elif kind == "end":
            del data[place:]
    return bytes(data)


def almost(*originals: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes, the originals, and mostly originals with changes."""
    given = st.sampled_from(originals)
    return st.one_of(mutated(given), mutated(given), given, st.binary(max_size=200))
