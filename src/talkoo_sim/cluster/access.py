"""Using a deployment from outside of its cluster, as a person does: kubectl's port-forward, keys from Secrets."""

from __future__ import annotations

import base64
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from talkoo.client import Client
from talkoo.profile import Profile
from talkoo_core.errors import Failed
from talkoo_runtime.disk import write_atomic
from talkoo_runtime.pki import CERTIFICATE_FILE, KEY_FILE, SECRET_MODE
from talkoo_sim.cluster.binaries import kubectl
from talkoo_sim.cluster.deployment import Deployment
from talkoo_sim.ports import free_port

GRPC_PORT = 7443


@contextlib.contextmanager
def forwarded(deployment: Deployment, service: str, port: int) -> Iterator[int]:
    """A port of this machine that leads to a Service's. Raises Failed."""
    here = free_port()
    command = [str(kubectl()), f"--kubeconfig={deployment.cluster.layout.kubeconfig}", "-n", deployment.namespace]
    with subprocess.Popen(
        [*command, "port-forward", f"service/{service}", f"{here}:{port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("Forwarding from"):
                raise Failed(f"kubectl does not forward {service}:{port}: {line.strip()}", code="no_forward")
            yield here
        finally:
            process.kill()


@contextlib.contextmanager
def client_of(deployment: Deployment, namespace: str, folder: Path) -> Iterator[Client]:
    """A client with the account of `namespace`; its files lie in `folder`."""
    release = deployment.release
    certificate = _secret(deployment, deployment.namespace, f"{release}-operator-tls")
    account = _secret(deployment, namespace, "talkoo-account")
    trust = deployment.cluster.get("-n", deployment.namespace, "configmap", f"{release}-federation")["data"]
    write_atomic(folder / CERTIFICATE_FILE, certificate[CERTIFICATE_FILE])
    write_atomic(folder / KEY_FILE, certificate[KEY_FILE], mode=SECRET_MODE)
    write_atomic(folder / "account.key", account["account.key"], mode=SECRET_MODE)
    write_atomic(folder / "trust.pem", trust["trust.pem"].encode())
    with forwarded(deployment, f"{release}-gateway", GRPC_PORT) as port:
        profile = Profile.direct(
            endpoint=f"127.0.0.1:{port}",
            certificate=folder / CERTIFICATE_FILE,
            private_key=folder / KEY_FILE,
            trust_bundle=folder / "trust.pem",
            account_key=folder / "account.key",
        )
        with Client(profile=profile) as client:
            yield client


def _secret(deployment: Deployment, namespace: str, name: str) -> dict[str, bytes]:
    data = deployment.cluster.get("-n", namespace, "secret", name)["data"]
    return {key: base64.b64decode(value) for key, value in data.items()}
