"""Kubernetes nodes without machines, by kwok: for what is measured with more nodes than this machine can run."""

from __future__ import annotations

import yaml

from talkoo_sim.cluster.binaries import binary, resources_of
from talkoo_sim.cluster.layout import Layout

NAME = "kwok"
MODULE = "sigs.k8s.io/kwok"
PORT = 10_446
LEASE_S = 600
"""A kubelet's Lease holds for 40 s. Renewals of a thousand of those would cover what else the API server does."""


def kwok_command(layout: Layout) -> list[str]:
    """Writes its configuration: a node that is made gets ready and stays so."""
    stages = [
        *resources_of(NAME, MODULE, "kustomize/stage/node/fast/node-*.yaml"),
        *resources_of(NAME, MODULE, "kustomize/stage/node/heartbeat-with-lease/node-*.yaml"),
    ]
    path = layout.folder / "kwok.yaml"
    path.write_text(yaml.safe_dump_all(stages))
    return [
        str(binary(NAME)),
        f"--kubeconfig={layout.kubeconfig}",
        f"--config={path}",
        "--manage-all-nodes",
        f"--node-lease-duration-seconds={LEASE_S}",
        f"--server-address={layout.api_address}:{PORT}",
    ]
