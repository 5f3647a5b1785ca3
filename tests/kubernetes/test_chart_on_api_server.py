"""The chart before a real API server: it takes every object, and pod security holds as the chart promises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from talkoo_core.errors import Failed
from talkoo_sim.cluster.chart import Object, pod_templates, render
from talkoo_sim.cluster.cluster import Cluster

pytestmark = pytest.mark.usefixtures("helm")

EVERYTHING: dict[str, Any] = {
    "ledger": {"engine": "cometbft", "rpc": {"enabled": True}},
    "gateway": {"autoscaling": {"enabled": True}, "service": {"type": "LoadBalancer"}},
    "networkPolicies": {"memberCidrs": ["203.0.113.0/24", "2001:db8::/32"]},
    "federation": {"accounts": [{"namespace": "chart-plain", "balance": "500 TLK"}]},
    "operator": {"watchNamespaces": ["chart-plain"]},
    "agents": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]},
    "cleanup": {"deleteSecrets": True},
}
PLAIN, RESTRICTED = "chart-plain", "chart-restricted"
ASKED_BY_AGENTS = {
    'container "folder" must not include "CHOWN" in securityContext.capabilities.add',
    'container "folder" must not set securityContext.runAsNonRoot=false',
    'container "folder" must not set runAsUser=0',
    'volume "state" uses restricted volume type "hostPath"',
}
"""A folder on the node for the node's own key, and one container that makes it."""
ENFORCE = "pod-security.kubernetes.io/enforce"


@pytest.fixture
def cluster(control_plane: Cluster) -> Iterator[Cluster]:
    """With our resources, a namespace as it comes and one that enforces the restricted standard."""
    definitions = [each for each in render() if each["kind"] == "CustomResourceDefinition"]
    control_plane.apply(*definitions)
    names = [each["metadata"]["name"] for each in definitions]
    control_plane.kubectl("wait", "--for=condition=Established", "crd", *names, "--timeout=30s")
    for name, labels in ((PLAIN, {}), (RESTRICTED, {ENFORCE: "restricted"})):
        control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield control_plane
    control_plane.kubectl("delete", "namespace", PLAIN, RESTRICTED, "--timeout=60s", timeout_s=70.0)


def dry_run(cluster: Cluster, namespace: str, objects: list[Object]) -> str:
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    return cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-n", namespace, "-f", "-", stdin=document)


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["as it stands", "everything"])
def test_the_api_server_takes_every_object(cluster: Cluster, values: dict[str, Any]) -> None:
    objects = render(values, namespace=PLAIN)
    told = dry_run(cluster, PLAIN, objects)
    assert told.count("(server dry run)") == len(objects)


def pods_of(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """A pod of each template; what only controllers set is set here."""
    for name, pod in pod_templates(objects):
        spec = {"restartPolicy": "Always", **pod["spec"]}
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        mounts = {m["name"] for c in spec["containers"] for m in c.get("volumeMounts", ())}
        spec["volumes"] = [*spec.get("volumes", ()), *({"name": m, "emptyDir": {}} for m in sorted(mounts - volumes))]
        metadata = {"name": name.lower().replace("/", "-"), "labels": pod["metadata"]["labels"]}
        yield name, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_a_restricted_namespace_takes_every_pod_but_the_agents(cluster: Cluster) -> None:
    objects = render(namespace=RESTRICTED)
    cluster.apply(
        *(each | {"metadata": each["metadata"] | {"namespace": RESTRICTED}}
          for each in objects if each["kind"] == "ServiceAccount")
    )  # fmt: skip
    refused = {}
    for name, pod in pods_of(objects):
        try:
            dry_run(cluster, RESTRICTED, [pod])
        except Failed as error:
            refused[name] = str(error)
    assert refused.keys() == {"DaemonSet/talkoo-agent"}
    _, _, told = refused["DaemonSet/talkoo-agent"].partition("violates PodSecurity")
    assert set(re.findall(r"\(([^)]*)\)", told)) == ASKED_BY_AGENTS
