"""Real clusters for the tests of this room, brought up by the first test that asks and taken away at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from talkoo_core.errors import InvalidInput, NotFound, TalkooError
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.cluster.layout import Layout

NAME_VARIABLE = "TALKOO_TEST_CLUSTER"
"""Up to six letters that clusters of this run are called by; runs side by side on one machine need different ones."""
NAME = os.environ.get(NAME_VARIABLE, "test")


class Clusters:
    """By name; what cannot be had here is not tried twice."""

    def __init__(self) -> None:
        self._up: dict[str, Cluster] = {}
        self._missing: dict[str, TalkooError] = {}

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

    def down(self) -> None:
        for each in self._up.values():
            each.down()


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    made = Clusters()
    yield made
    made.down()


@pytest.fixture
def control_plane(clusters: Clusters, leave_out: Callable[[TalkooError], NoReturn]) -> Cluster:
    """etcd, API server, controller manager and scheduler, without nodes; one for the whole run."""
    try:
        return clusters.get(f"{NAME}cp", nodes=0)
    except (NotFound, InvalidInput) as error:
        leave_out(error)
