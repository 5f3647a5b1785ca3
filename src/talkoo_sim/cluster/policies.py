"""NetworkPolicies that hold: kube-router's firewall, of which one serves one node."""

from __future__ import annotations

from talkoo_core.errors import InvalidInput
from talkoo_sim.cluster.binaries import binary
from talkoo_sim.cluster.commands import run
from talkoo_sim.cluster.layout import Layout
from talkoo_sim.cluster.network import inside_namespace

CHAIN = "KUBE-ROUTER-FORWARD"


def enforcer_command(layout: Layout) -> list[str]:
    """Raises InvalidInput for more than one node: they share a network, and it takes pods of another for strangers."""
    if layout.nodes != 1:
        raise InvalidInput(f"policies are enforced in clusters of one node, {layout.name} has {layout.nodes}")
    for program in ("ipset", "iptables"):
        binary(program)  # by name, it finds them itself
    return [
        str(binary("kube-router")),
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        "--enable-cni=false",
        f"--kubeconfig={layout.kubeconfig}",
        f"--hostname-override={layout.node_names()[0]}",
        f"--service-cluster-ip-range={layout.services_cidr}",
        "--health-port=0",
    ]


def enforced(layout: Layout) -> bool:
    """Whether packets to and from pods pass the enforcer's rules."""
    rules = run([*inside_namespace(layout), binary("iptables"), "-S", "FORWARD"])
    return f"-j {CHAIN}" in rules
