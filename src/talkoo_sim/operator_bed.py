"""Operators as real processes between a real API server and a real federation of this machine.

The federation is `talkoo up` in a folder of its own: one organization, whose owner's key and certificates the operators
use as they would in a cluster.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from talkoo.client_async import AsyncClient
from talkoo.federation.plan import FederationPlan, NodePlan, OrganizationPlan, UserPlan
from talkoo.federation.provision import provision
from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_core.errors import Failed, TalkooError, Unavailable
from talkoo_runtime.pki import CERTIFICATE_FILE, KEY_FILE
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.cluster.own_images import ROOT
from talkoo_sim.ports import free_port

ORGANIZATION, RELEASE, NAMESPACE = "north", "talkoo", "talkoo"
OPERATOR = f"{RELEASE}-operator"
"""Its service account and its Lease."""
CRDS = ROOT / "helm" / "talkoo" / "crd-files"
START_S, STOP_S, PATIENCE_S = 180.0, 30.0, 180.0
POLL_S = 0.1
MIB = 1 << 20
PROGRAM = """
def build_model(config): ...
def open_data(path): ...
def loss(model, batch): ...
def correct(model, batch): ...
def predict(model, inputs): ...
"""


def eventually(holds: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Poll until `holds` gives something true; that is returned. Raises Unavailable, with what `holds` raised."""
    deadline = time.monotonic() + patience_s
    reason = ""
    while True:
        try:
            found = holds()
            if found:
                return found
        except TalkooError as error:
            reason = f": {error}"
        if time.monotonic() > deadline:
            raise Unavailable(f"not within {patience_s:.0f} s: {what}{reason}", code="too_slow")
        time.sleep(POLL_S)


class LocalFederation:
    """`accounts`: a user with so many TLK for each name. `nodes`: how many machines lend themselves."""

    def __init__(self, home: Path, accounts: dict[str, int], nodes: int = 0, *, rest: Sequence[str] = ()) -> None:
        self.home = home
        self._log = home.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        machines = [NodePlan(f"{ORGANIZATION}-{n + 1}", 0.9, 1024 * MIB, 800_000) for n in range(nodes)]
        self.plan = FederationPlan(
            name="talkoo-bed",
            chain_id="talkoo-bed-1",
            organizations=[OrganizationPlan(ORGANIZATION, machines), *(OrganizationPlan(name, []) for name in rest)],
            users=[UserPlan(name, ORGANIZATION, tlk * UTLK_PER_TLK) for name, tlk in accounts.items()],
        )

    def start(self) -> None:
        self.plan = provision(self.home, self.plan).plan
        seen = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).parent / "talkoo"), "up", "--home", str(self.home)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def takes_tasks() -> bool:
            assert self._process is not None
            said = self._log.read_bytes()[seen:].decode(errors="replace")
            if self._process.poll() is not None:
                raise Failed(f"the federation ended: {said[-2000:]}")
            return "takes tasks" in said

        eventually(takes_tasks, "the federation takes tasks", START_S)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    @property
    def pid(self) -> int:
        """Of the process whose children the services are."""
        assert self._process is not None
        return self._process.pid

    @property
    def gateway(self) -> str:
        return f"127.0.0.1:{self.plan.organizations[0].gateway_port}"

    def account_key(self, user: str) -> bytes:
        """The key file."""
        return (self.home / "users" / user / "account.key").read_bytes()

    def settings(self, name: str, probe_port: int, more: dict[str, Any]) -> str:
        """TOML for an operator of this organization."""
        organization = self.home / "organizations" / ORGANIZATION
        owner = self.home / "users" / ORGANIZATION
        values = {
            "name": name,
            "namespace": NAMESPACE,
            "release": RELEASE,
            "organization": ORGANIZATION,
            "federation": self.plan.name,
            "gateway": self.gateway,
            "certificate": str(owner / CERTIFICATE_FILE),
            "private_key": str(owner / KEY_FILE),
            "trust_bundle": str(self.home / "trust.pem"),
            "owner_key": str(organization / "keys" / "owner.key"),
            "authority_certificate": str(organization / "authority" / CERTIFICATE_FILE),
            "authority_key": str(organization / "authority" / KEY_FILE),
            "probe_listen": f"127.0.0.1:{probe_port}",
            **more,
        }
        return "".join(f"{field} = {_toml(value)}\n" for field, value in values.items())


class OperatorProcess:
    """One replica. `module`: a program that runs the operator; `arguments` come before its own."""

    def __init__(
        self,
        folder: Path,
        name: str,
        federation: LocalFederation,
        kubeconfig: Path,
        *,
        module: str = "talkoo_operator",
        arguments: Sequence[str] = (),
        **more: Any,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._probe_port = free_port()
        settings = folder / f"{name}.toml"
        settings.write_text(federation.settings(name, self._probe_port, more))
        environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
        command = [sys.executable, "-m", module, *arguments, "--settings", str(settings)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    @property
    def leads(self) -> bool:
        return "this replica leads" in self.said()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def probe(self) -> tuple[int, str]:
        """Status and words of the liveness probe."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._probe_port}/healthz", timeout=5) as answer:
                return int(answer.status), str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return int(error.code), error.read().decode()
        except OSError as error:
            return 0, str(error)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM. Raises Unavailable when it does not end by that, and kills it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise Unavailable(f"{self.name} did not stop in {STOP_S:.0f} s", code="too_slow") from None


def install_crds(cluster: Cluster) -> None:
    """The chart's own, and wait until the API server serves them."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    for path in sorted(CRDS.glob("*.yaml")):
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{path.stem}.talkoo.dev", "--timeout=60s")


def make_namespace(cluster: Cluster, name: str, key: bytes | None = None, limit: str = "") -> None:
    """With an account, and with a spend limit where one is given."""
    annotations = {"talkoo.dev/spend-limit": limit} if limit else {}
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}}
    ]
    cluster.apply(*objects)
    if key is not None:
        cluster.apply(account_secret(name, key))


def account_secret(namespace: str, key: bytes) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "talkoo-account", "namespace": namespace},
        "data": {"account.key": base64.b64encode(key).decode()},
    }


class Bed:
    """What a test speaks with. Its federation has no nodes: tasks wait there, and nobody trains them."""

    def __init__(
        self,
        cluster: Cluster,
        federation: LocalFederation,
        folder: Path,
        operators: list[OperatorProcess] | None = None,
    ) -> None:
        self.cluster = cluster
        self.federation = federation
        self.folder = folder
        self.operators: list[OperatorProcess] = [] if operators is None else operators

    def operator(self, name: str, **more: Any) -> OperatorProcess:
        kubeconfig = more.pop("kubeconfig", self.cluster.layout.kubeconfig)
        made = OperatorProcess(self.folder, f"{name}-{len(self.operators)}", self.federation, kubeconfig, **more)
        self.operators.append(made)
        return made

    def stop_operators(self) -> None:
        while self.operators:
            self.operators.pop().stop()
        # The next leader need not wait for the Lease to run out.
        self.cluster.kubectl("-n", NAMESPACE, "delete", "lease", OPERATOR, "--ignore-not-found")

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
            return dict(eventually(look, f"{namespace}/{name}", more.get("patience_s", PATIENCE_S)))
        except TalkooError as error:
            logs = "\n".join(each.said()[-3000:] for each in self.operators)
            raise AssertionError(f"{error}; last seen: {seen[-1] if seen else None}\n{logs}") from None

    def on_ledger(self, user: str) -> list[Any]:
        """The account's tasks on the ledger, read by another way than the operator's."""

        async def read() -> list[Any]:
            async with AsyncClient(self.federation.home, user=user) as client:
                return [each for each in await client.tasks() if each.owner == client.address]

        return asyncio.run(read())


def waits(status: dict[str, Any]) -> bool:
    """The ledger has the task, and a scheduler has said that it waits."""
    return status.get("reason") == "WaitingForPlacement"


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


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
