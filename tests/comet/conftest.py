"""CometBFT for the tests of this room. Where it cannot be built (no Go), the run ends with what was left out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from talkoo_core.errors import NotFound
from talkoo_sim.comet_processes import CometLedgers
from talkoo_sim.cometbft import cometbft_binary

_not_run: dict[str, str] = {}
"""Tests of this room that had no CometBFT, and why."""


@pytest.fixture
def cometbft(request: pytest.FixtureRequest) -> Path:
    """The binary. Without Go the test is counted as skipped, and named with the reason at the end of the run."""
    try:
        return cometbft_binary()
    except NotFound as error:
        _not_run[request.node.nodeid] = str(error)
        pytest.skip(str(error))


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _not_run:
        terminalreporter.section("NOT RUN: CometBFT", sep="!", red=True, bold=True)
        for test, why in _not_run.items():
            terminalreporter.line(f"{test}: {why}")
