"""Real clusters for the tests of this room, brought up by the first test that asks and taken away at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from talkoo_core.errors import InvalidInput, NotFound, TalkooError
from talkoo_sim.cluster.binaries import binary
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.cluster.deployment import Deployment
from talkoo_sim.cluster.layout import Layout
from talkoo_sim.operator_bed import eventually

NAME_VARIABLE = "TALKOO_TEST_CLUSTER"
"""Up to six letters that clusters of this run are called by; runs side by side on one machine need different ones."""
NAME = os.environ.get(NAME_VARIABLE, "test")


class Clusters:
    """By name; what cannot be had here is not tried twice."""

    def __init__(self) -> None:
        self._up: dict[str, Cluster] = {}
        self._missing: dict[str, TalkooError] = {}
        self._deployments: dict[str, Deployment] = {}

    def get(self, name: str, nodes: int) -> Cluster:
        """Raises NotFound (a program, Go) or InvalidInput (no root)."""
        if name in self._missing:
            raise self._missing[name]
        if name not in self._up:
            made = Cluster(Layout(name, nodes))
            try:
                made.down()  # what an earlier run left behind, because it was killed
                made.up()
            except (NotFound, InvalidInput) as error:
                self._missing[name] = error
                raise
            self._up[name] = made
        return self._up[name]

    def deployment(self, name: str, nodes: int) -> Deployment:
        """Talkoo in a cluster of its own. What happened is kept when it does not get ready."""
        if name not in self._deployments:
            made = Deployment(self.get(name, nodes), {"monitoring": {"enabled": True}})
            try:
                made.prepare()
                made.install()
                made.wait_ready()
            except NotFound as error:
                self._missing[name] = error
                raise
            except BaseException:
                made.cluster.keep_logs(Path(f"{made.cluster.layout.folder}-logs"))
                raise
            self._deployments[name] = made
        return self._deployments[name]

    def take_away(self, name: str) -> None:
        """As soon as nobody needs it: it takes processor time from the tests that come. Fine if it never came up."""
        self._deployments.pop(name, None)
        made = self._up.pop(name, None)
        if made is not None:
            made.down()

    def down(self) -> None:
        for name in list(self._up):
            self.take_away(name)


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    made = Clusters()
    yield made
    made.down()


@pytest.fixture
def cluster_name() -> str:
    """To begin names of clusters with that a test has for itself."""
    return NAME


@pytest.fixture
def control_plane(clusters: Clusters, leave_out: Callable[[TalkooError], NoReturn]) -> Cluster:
    """etcd, API server, controller manager and scheduler, without nodes; one for each process that runs tests."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    try:
        return clusters.get(f"{NAME}c{number}", nodes=0)
    except (NotFound, InvalidInput) as error:
        leave_out(error)


@pytest.fixture(scope="module")
def two_nodes(clusters: Clusters) -> Iterator[str]:
    """Name of the cluster of `deployed`, which goes with the file that uses it."""
    yield NAME
    clusters.take_away(NAME)


@pytest.fixture
def deployed(clusters: Clusters, two_nodes: str, leave_out: Callable[[TalkooError], NoReturn]) -> Deployment:
    """Talkoo as the chart installs it on two real nodes; one for all tests of a file, so a test leaves it usable."""
    try:
        return clusters.deployment(two_nodes, nodes=2)
    except (NotFound, InvalidInput) as error:
        leave_out(error)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    """Polls until `holds` gives something true, which is returned. What cannot be asked for a moment does not hold."""

    def patient(holds: Callable[[], Any], what: str, patience_s: float = 120.0) -> Any:
        return eventually(holds, what, patience_s)

    return patient


@pytest.fixture
def helm(leave_out: Callable[[TalkooError], NoReturn]) -> None:
    """For tests of the chart: the real helm is there."""
    try:
        binary("helm")
    except NotFound as error:
        leave_out(error)
