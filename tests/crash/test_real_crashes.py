"""Real validators killed -9, at random and at persistence points in turn. `python -m talkoo_sim.crashes` does more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from talkoo_sim.crashes import run_crashes

KILLS = int(os.environ.get("TALKOO_CRASH_KILLS", "16"))
"""Of each part. By default a share that takes half a minute; hundreds: `TALKOO_CRASH_KILLS=300`."""
REJOIN_MOST_S = 30.0
"""Generous, for a machine that is busy with other things; what is measured on an idle one stands in the docs."""


@pytest.mark.parametrize(("seed", "first_point"), [(1, 1), (2, 9)], ids=["while starting", "while deciding"])
async def test_killed_validators_come_back_and_sign_lose_and_fork_nothing(
    tmp_path: Path, seed: int, first_point: int
) -> None:
    outcome = await run_crashes(tmp_path, KILLS, seed, first_point)
    assert outcome.broken == []
    assert outcome.kills >= KILLS
    assert outcome.points >= KILLS // 2 - 1
    assert len(outcome.rejoin_s) == outcome.points
    assert max(outcome.rejoin_s) <= REJOIN_MOST_S, outcome.summary()
