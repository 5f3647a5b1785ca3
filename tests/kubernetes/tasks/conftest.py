"""A real API server, a real federation, and operators between them as the tests start and kill them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.operator_bed import (
    NAMESPACE,
    Bed,
    LocalFederation,
    OperatorProcess,
    eventually,
    install_crds,
    make_namespace,
)
from talkoo_sim.operator_rights import remove, service_account


@pytest.fixture(scope="package")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    made = LocalFederation(tmp_path_factory.mktemp("bed") / "home", {"alice": 500, "bob": 50, "carol": 10})
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def api_server(control_plane: Cluster) -> Cluster:
    install_crds(control_plane)
    make_namespace(control_plane, NAMESPACE)
    return control_plane


@pytest.fixture(scope="package")
def standing() -> Iterator[list[OperatorProcess]]:
    """The operator of all tests that do not kill theirs: starting one takes longer than what they do with it.

    It ends with this folder: it would look after the objects of whoever uses the cluster next.
    """
    made: list[OperatorProcess] = []
    yield made
    while made:
        made.pop().stop()


@pytest.fixture
def bed(
    api_server: Cluster, federation: LocalFederation, tmp_path: Path, standing: list[OperatorProcess]
) -> Iterator[Bed]:
    """No operator runs but those that the test starts, and they end with it."""
    made = Bed(api_server, federation, tmp_path, standing)
    made.stop_operators()
    try:
        yield made
    finally:
        made.stop_operators()


@pytest.fixture
def space(
    api_server: Cluster,
    federation: LocalFederation,
    tmp_path_factory: pytest.TempPathFactory,
    standing: list[OperatorProcess],
) -> Bed:
    """With an operator that leads."""
    made = Bed(api_server, federation, tmp_path_factory.mktemp("standing"), standing)
    if not standing or standing[0].process.poll() is not None:
        standing.clear()
        made.operator("standing", resync_s=5.0)
    eventually(lambda: standing[0].leads, "the operator leads")
    return made


@pytest.fixture
def kubeconfig(bed: Bed, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes a service account with the rights that the chart gives with some values, and its kubeconfig."""
    made: list[dict[str, Any]] = []

    def make(*settings: str) -> Path:
        path = tmp_path / "operator.kubeconfig"
        made.extend(service_account(bed.cluster, path, *settings))
        return path

    yield make
    bed.stop_operators()
    remove(bed.cluster, *made)
