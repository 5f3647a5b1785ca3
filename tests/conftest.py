"""What tests of several rooms need and not every machine has: without it, the run ends with what was left out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from talkoo_core.errors import NotFound, TalkooError
from talkoo_sim.cometbft import cometbft_binary
from talkoo_sim.go_tools import find_go

_not_run: dict[str, str] = {}
"""Tests that lacked something, and what."""


@pytest.fixture
def go(request: pytest.FixtureRequest) -> Path:
    """Go's command. Without it the test is counted as skipped, and named with the reason at the end of the run."""
    try:
        return find_go()
    except NotFound as error:
        _leave_out(request, error)


@pytest.fixture
def cometbft(request: pytest.FixtureRequest) -> Path:
    """The real CometBFT, built by the first test that asks (about a minute). Without Go as above."""
    try:
        return cometbft_binary()
    except NotFound as error:
        _leave_out(request, error)


@pytest.fixture
def leave_out(request: pytest.FixtureRequest) -> Callable[[TalkooError], NoReturn]:
    """Ends the test as not run, for the reason that the error gives."""
    return functools.partial(_leave_out, request)


def _leave_out(request: pytest.FixtureRequest, error: TalkooError) -> NoReturn:
    _not_run[request.node.nodeid] = str(error)
    pytest.skip(str(error))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _not_run:
        terminalreporter.section("NOT RUN", sep="!", red=True, bold=True)
        for test, why in _not_run.items():
            terminalreporter.line(f"{test}: {why}")
