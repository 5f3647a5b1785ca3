"""Federations under CometBFT for the tests of this room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from talkoo_sim.comet_processes import CometLedgers


@pytest.fixture
async def federation(tmp_path: Path, cometbft: Path) -> AsyncIterator[Callable[..., CometLedgers]]:
    """Makes federations under CometBFT, not started yet; everything started is killed afterwards."""
    made: list[CometLedgers] = []

    def make(**arguments: Any) -> CometLedgers:
        folder = tmp_path / f"federation-{len(made)}"
        folder.mkdir()
        made.append(CometLedgers(folder, **arguments))
        return made[-1]

    yield make
    for each in made:
        await each.close()
