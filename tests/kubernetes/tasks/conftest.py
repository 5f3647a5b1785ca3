"""A real API server, a real federation, and operators between them as the tests start and kill them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from talkoo_core.errors import TalkooError
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.operator_bed import (
    NAMESPACE,
    LocalFederation,
    OperatorProcess,
    eventually,
    install_crds,
    make_namespace,
)

ENDED = ("Succeeded", "Failed", "Cancelled")
PROGRAM = """
def build_model(config): ...
def open_data(path): ...
def loss(model, batch): ...
def correct(model, batch): ...
def predict(model, inputs): ...
"""


class Bed:
    """What a test speaks with. Its federation has no nodes: tasks wait there, and nobody trains them."""

    def __init__(self, cluster: Cluster, federation: LocalFederation, folder: Path) -> None:
        self.cluster = cluster
        self.federation = federation
        self.folder = folder
        self.operators: list[OperatorProcess] = []

    def operator(self, name: str, **more: Any) -> OperatorProcess:
        kubeconfig = more.pop("kubeconfig", self.cluster.layout.kubeconfig)
        made = OperatorProcess(self.folder, f"{name}-{len(self.operators)}", self.federation, kubeconfig, **more)
        self.operators.append(made)
        return made

    def stop_operators(self) -> None:
        for each in self.operators:
            each.stop()
        self.operators.clear()
        self.cluster.kubectl("-n", NAMESPACE, "delete", "lease", "--all")  # the next leader need not wait

    def namespace(self, name: str, user: str = "", limit: str = "") -> str:
        key = self.federation.account_key(user) if user else None
        make_namespace(self.cluster, name, key, limit)
        self.cluster.apply(program(name))
        return name

    def submit(self, namespace: str, name: str, **spec: Any) -> None:
        self.cluster.apply(task(namespace, name, **spec))

    def get(self, namespace: str, name: str, kind: str = "trainingtask") -> dict[str, Any]:
        return dict(self.cluster.get("-n", namespace, kind, name))

    def status(self, namespace: str, name: str, kind: str = "trainingtask") -> dict[str, Any]:
        return dict(self.get(namespace, name, kind).get("status", {}))

    def patch(self, namespace: str, name: str, change: str, kind: str = "trainingtask") -> None:
        self.cluster.kubectl("-n", namespace, "patch", kind, name, "--type=merge", "-p", change)

    def until(self, namespace: str, name: str, wanted: Callable[[dict[str, Any]], Any], **more: Any) -> dict[str, Any]:
        """The status, as soon as `wanted` of it holds."""

        def look() -> dict[str, Any] | None:
            status = self.status(namespace, name, more.get("kind", "trainingtask"))
            seen.append(status)
            return status if wanted(status) else None

        seen: list[dict[str, Any]] = []
        try:
            return dict(eventually(look, f"{namespace}/{name}", more.get("patience_s", 90.0)))
        except TalkooError as error:
            logs = "\n".join(each.said()[-3000:] for each in self.operators)
            raise AssertionError(f"{error}; last seen: {seen[-1] if seen else None}\n{logs}") from None

    def on_ledger(self, user: str) -> list[Any]:
        """The account's tasks on the ledger, read by another way than the operator's."""
        import asyncio

        from talkoo.client_async import AsyncClient

        async def read() -> list[Any]:
            async with AsyncClient(self.federation.home, user=user) as client:
                return [each for each in await client.tasks() if each.owner == client.address]

        return asyncio.run(read())


def program(namespace: str) -> dict[str, Any]:
    data = {"tiny.py": PROGRAM, "tiny.txt": "data"}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "tiny", "namespace": namespace},
        "data": data,
    }


def task(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """It costs 1 TLK and names how many operations it takes, so that nobody has to count."""
    return {
        "apiVersion": "talkoo.dev/v1alpha1",
        "kind": "TrainingTask",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "program": {"configMap": "tiny", "module": "tiny", "flopsPerSample": 1000},
            "data": {"path": "tiny.txt"},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "globalBatch": 4,
            "steps": 10,
            "nodes": {"min": 1, "max": 1},
            "budget": "1 TLK",
            "price": "1 TLK",
            "model": {"name": name},
        }
        | spec,
    }


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
