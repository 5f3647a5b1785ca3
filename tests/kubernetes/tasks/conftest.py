"""A real API server, a real federation, and operators between them as the tests start and kill them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.operator_bed import NAMESPACE, Bed, LocalFederation, install_crds, make_namespace


@pytest.fixture(scope="session")
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


@pytest.fixture
def bed(api_server: Cluster, federation: LocalFederation, tmp_path: Path) -> Iterator[Bed]:
    """Operators of a test end with it, and its namespaces are let go by another."""
    made = Bed(api_server, federation, tmp_path)
    try:
        yield made
    finally:
        made.stop_operators()
