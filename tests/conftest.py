"""How a run is divided, and what tests need that not every machine has: it ends with what was left out for that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from talkoo_core.errors import NotFound, TalkooError
from talkoo_sim.cluster.binaries import binary
from talkoo_sim.cometbft import cometbft_binary
from talkoo_sim.go_tools import find_go

TOGETHER = {
    "kubernetes/tasks": "kubernetes/tasks",
    "kubernetes/test_chart_jobs.py": "control plane",
    "kubernetes/test_chart_on_api_server.py": "control plane",
    "kubernetes/test_gpu_nodes.py": "control plane",
    "e2e": "e2e",
    "agent": "agent",
    "validator": "validator",
    "math": "math",
    "crash": "crash",
}
"""Files that share something that takes long to bring up. Every other file is a unit of work of its own."""
LONGEST_FIRST = (
    "kubernetes/tasks",
    "kubernetes/test_real_cluster.py",
    "control plane",
    "kubernetes/test_two_clusters.py",
)
NOT_RUN = "not run: "


class ByUnit(LoadScopeScheduling):
    """Processes that run tests side by side take one unit of work after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of_work(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByUnit:
    config.option.loadscopereorder = False  # by its own count of tests; ours is below
    return ByUnit(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    last = len(LONGEST_FIRST)
    units = {item: unit_of_work(item.nodeid) for item in items}
    items.sort(key=lambda item: LONGEST_FIRST.index(units[item]) if units[item] in LONGEST_FIRST else last)


def unit_of_work(nodeid: str) -> str:
    path = Path(nodeid.partition("::")[0]).relative_to("tests")
    return next((TOGETHER[p] for p in map(str, (path, *path.parents)) if p in TOGETHER), str(path))


@pytest.fixture
def go() -> Path:
    """Go's command. Without it the test is counted as skipped, and named with the reason at the end of the run."""
    try:
        return find_go()
    except NotFound as error:
        _leave_out(error)


@pytest.fixture
def cometbft() -> Path:
    """The real CometBFT, built by the first test that asks (about a minute). Without Go as above."""
    try:
        return cometbft_binary()
    except NotFound as error:
        _leave_out(error)


@pytest.fixture
def program() -> Callable[[str], Path]:
    """A program by name, from the distribution or built. Without it as above."""

    def find(name: str) -> Path:
        try:
            return binary(name)
        except NotFound as error:
            _leave_out(error)

    return find


@pytest.fixture
def leave_out() -> Callable[[TalkooError], NoReturn]:
    """Ends the test as not run, for the reason that the error gives."""
    return _leave_out


def _leave_out(error: TalkooError) -> NoReturn:
    pytest.skip(f"{NOT_RUN}{error}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    not_run = [(each.nodeid, each.longrepr[2].partition(NOT_RUN)[2]) for each in skipped if NOT_RUN in each.longrepr[2]]
    if not_run:
        terminalreporter.section("NOT RUN", sep="!", red=True, bold=True)
        for test, why in not_run:
            terminalreporter.line(f"{test}: {why}")
