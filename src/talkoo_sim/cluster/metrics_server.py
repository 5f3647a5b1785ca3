"""Kubernetes' metrics server beside a cluster: what `kubectl top` and HorizontalPodAutoscalers ask for."""

from __future__ import annotations

from typing import Any

from talkoo_sim.cluster.binaries import binary
from talkoo_sim.cluster.layout import Layout

NAME = "metrics-server"
PORT = 10_443
GROUP, VERSION = "metrics.k8s.io", "v1beta1"
API_SERVICE = f"{VERSION}.{GROUP}"
WHERE = {"namespace": "kube-system", "name": NAME}


def resources(layout: Layout) -> list[dict[str, Any]]:
    """A Service without pods, that leads to the process, and who answers for the API group."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": WHERE,
            "spec": {"ports": [{"name": "https", "port": 443, "targetPort": PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": WHERE | {"labels": {"kubernetes.io/service-name": NAME}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [layout.api_address], "conditions": {"ready": True}}],
            "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": API_SERVICE},
            "spec": {
                "group": GROUP,
                "version": VERSION,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,  # it makes its certificate itself, as in its own manifests
                "service": {"namespace": WHERE["namespace"], "name": NAME},
            },
        },
    ]


def server_command(layout: Layout) -> list[str]:
    """It reads the kubelets every ten seconds, which is as often as it can."""
    who = layout.kubeconfig
    return [
        str(binary(NAME)),
        f"--kubeconfig={who}",
        f"--authentication-kubeconfig={who}",
        f"--authorization-kubeconfig={who}",
        f"--bind-address={layout.api_address}",
        f"--secure-port={PORT}",
        f"--cert-dir={layout.folder / NAME}",
        "--kubelet-insecure-tls",
        "--kubelet-preferred-address-types=InternalIP",
        "--kubelet-request-timeout=5s",
        "--metric-resolution=10s",
    ]
