"""Talkoo in a cluster of this machine: our images, volumes for its claims, and the chart installed by helm."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from typing import Any

from talkoo_core.errors import NotFound
from talkoo_sim.cluster.addons import DNS_PORT
from talkoo_sim.cluster.binaries import binary
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.cluster.commands import run
from talkoo_sim.cluster.images import import_image
from talkoo_sim.cluster.own_images import ROOT, TARGETS, image_archive, image_name
from talkoo_sim.cluster.volumes import volumes

CHART = ROOT / "helm" / "talkoo"
IMAGE_PYTHON = (3, 11)
"""Of Debian bookworm, on which the images are made here."""
VOLUMES = 8
HELM_TIMEOUT_S, READY_TIMEOUT_S = 120.0, 300.0
AGENT_MEMORY_BYTES = 1 << 30
NAMESPACE = RELEASE = "talkoo"


class Deployment:
    """One release of the chart in its own namespace; `values` go over those that fit this machine."""

    def __init__(
        self,
        cluster: Cluster,
        values: Mapping[str, Any] | None = None,
        *,
        namespace: str = NAMESPACE,
        release: str = RELEASE,
    ) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.release = release
        self.values: dict[str, Any] = _merged(_values(cluster), values or {})

    def prepare(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Build the images unless they are there, give them to the nodes, and make volumes."""
        if sys.version_info[:2] != IMAGE_PYTHON:
            raise NotFound(
                f"pods that train use this environment's packages, which are for Python {sys.version_info[0]}."
                f"{sys.version_info[1]}; the images have 3.11: make the environment with PYTHON=python3.11",
                code="no_python",
            )
        for target in TARGETS:
            say(f"image talkoo-{target}")
            import_image(self.cluster.layout, image_archive(target))
        self.cluster.apply(*volumes(self.cluster.layout, VOLUMES))

    def helm(self, *arguments: str, stdin: str | None = None, timeout_s: float = HELM_TIMEOUT_S) -> str:
        """What helm printed. Raises Failed with its own words."""
        environment = os.environ | {"KUBECONFIG": str(self.cluster.layout.kubeconfig)}
        command = [str(binary("helm")), *arguments, "--namespace", self.namespace]
        return run(command, stdin=stdin, environment=environment, timeout_s=timeout_s)

    def install(self, *more: str) -> str:
        """Install or upgrade."""
        values = json.dumps(self.values)
        return self.helm(
            "upgrade", "--install", self.release, str(CHART), "--create-namespace", "--values", "-", *more, stdin=values
        )

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Until every pod of the release runs as its newest template says. Raises Failed with what does not."""
        for kind in ("statefulset", "deployment", "daemonset"):
            for item in self.cluster.get(
                "-n", self.namespace, kind, "-l", f"app.kubernetes.io/instance={self.release}"
            )["items"]:
                name = f"{kind}/{item['metadata']['name']}"
                self.cluster.kubectl(
                    "-n",
                    self.namespace,
                    "rollout",
                    "status",
                    name,
                    f"--timeout={timeout_s:.0f}s",
                    timeout_s=timeout_s + 10,
                )


def _values(cluster: Cluster) -> dict[str, Any]:
    """Images by the names they were imported under; torch and what it needs from this environment, read-only."""
    packages = sysconfig.get_path("purelib")
    extra = {
        "extraEnv": [{"name": "PYTHONPATH", "value": "/opt/packages"}, {"name": "OMP_NUM_THREADS", "value": "1"}],
        "extraVolumes": [{"name": "packages", "hostPath": {"path": packages, "type": "Directory"}}],
        "extraVolumeMounts": [{"name": "packages", "mountPath": "/opt/packages", "readOnly": True}],
    }
    control, storage = (dict(zip(("repository", "tag"), image_name(t).split(":"), strict=True)) for t in TARGETS)
    return {
        "organization": "north",
        "federation": {"accounts": [{"namespace": "default", "balance": "500 TLK"}]},
        "networkPolicies": {"dnsPorts": [DNS_PORT]},
        "images": {"pullPolicy": "Never", "control": control, "train": control, "storage": storage},
        "validator": {"resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "4Gi"}}}
        | extra,
        "agents": {
            "allowCpu": True,
            "statePath": str(cluster.layout.folder / "agents"),
            "memoryBytes": AGENT_MEMORY_BYTES,
        }
        | extra,
    }


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """As helm merges values: mappings by key, everything else as a whole."""
    made = dict(base)
    for key, value in over.items():
        known = made.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        made[key] = _merged(known, value) if both else value  # type: ignore[arg-type]  # both are mappings then
    return made
