"""The cluster's own network namespace with its nodes' addresses, the link to it, and its CNI configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from talkoo_core.errors import Failed
from talkoo_sim.cluster.binaries import binary, cni_folder
from talkoo_sim.cluster.commands import run
from talkoo_sim.cluster.layout import Layout

NAMESPACES = Path("/run/netns")
LINKS = Path("/sys/class/net")
CNI_RESULTS = Path("/var/lib/cni/results")
"""Where the CNI library remembers what it gave to which container; it knows no other place."""
BRIDGE = "nodes"
UPLINK = "uplink"


def make_network(layout: Layout) -> None:
    """A namespace with a bridge that carries the addresses of API server and nodes, and a link to this machine.

    All parts of the cluster live in it, so its rules, routes and links are its own, and go with it. A bridge,
    because kubelet takes no address of loopback or a dummy.
    """
    ip, name = binary("ip"), layout.network_namespace
    run([ip, "netns", "add", name])
    inside: list[str | Path] = [ip, "-n", name]
    run([*inside, "link", "set", "lo", "up"])
    run([*inside, "link", "add", BRIDGE, "type", "bridge"])
    for address in (layout.api_address, *(layout.node_address(number + 1) for number in range(layout.nodes))):
        run([*inside, "address", "add", f"{address}/24", "dev", BRIDGE])
    run([ip, "link", "add", layout.link, "type", "veth", "peer", "name", UPLINK, "netns", name])
    run([*inside, "link", "set", UPLINK, "master", BRIDGE])
    for link in (BRIDGE, UPLINK):
        run([*inside, "link", "set", link, "up"])
    run([ip, "address", "add", f"{layout.outside_address}/24", "dev", layout.link])
    run([ip, "link", "set", layout.link, "up"])
    run([ip, "route", "add", layout.pods_cidr, "via", layout.api_address])
    run([*inside, "route", "add", "default", "via", layout.outside_address])
    for where in (inside_namespace(layout), []):
        run([*where, str(binary("sysctl")), "-qw", "net.ipv4.ip_forward=1"])


def inside_namespace(layout: Layout) -> list[str]:
    """Put before a command, it runs in the cluster's network namespace, as the same process."""
    return [str(binary("nsenter")), f"--net={NAMESPACES / layout.network_namespace}"]


def set_link(layout: Layout, *, up: bool) -> None:
    """Whether the cluster reaches this machine and the other clusters on it."""
    run([binary("ip"), "link", "set", layout.link, "up" if up else "down"])
    if up:  # the kernel forgets routes of a link that goes down
        run([binary("ip"), "route", "replace", layout.pods_cidr, "via", layout.api_address])


def only_outward(layout: Layout) -> None:
    """From now on nobody outside of the cluster but this machine begins a connection into it, as behind a firewall."""
    drop = f'ct state new iifname != "lo" ip saddr != {layout.network}.0.0/16 drop'
    chains = [f"chain {hook} {{ type filter hook {hook} priority -10; {drop}; }}" for hook in ("input", "forward")]
    rules = "\n".join(["table inet talkoo-outward {", *chains, "}", ""])
    run([*inside_namespace(layout), str(binary("nft")), "-f", "-"], stdin=rules)


def write_cni(layout: Layout, number: int) -> Path:
    """Configuration for one node; returns its folder.

    `ptp`: with `bridge` a Service whose backend is on the caller's own bridge times out: its answer goes the short way.
    """
    folder = layout.node_folder(number) / "cni"
    folder.mkdir(parents=True)
    configuration = {
        "cniVersion": "0.4.0",
        "name": layout.pod_network,
        "plugins": [
            {
                "type": "ptp",
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(layout.node_folder(number) / "addresses"),
                    "ranges": [[{"subnet": layout.node_pods_cidr(number)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    (folder / "10-talkoo.conflist").write_text(json.dumps(configuration, indent=1))
    cni_folder()
    return folder


def remove_network(layout: Layout) -> None:
    """The namespace with all that is in it, and remembered results. What is not there is fine."""
    ip = binary("ip")
    if (NAMESPACES / layout.network_namespace).exists():
        run([ip, "netns", "delete", layout.network_namespace])
    if (LINKS / layout.link).exists():
        try:
            run([ip, "link", "delete", layout.link])
        except Failed:  # the kernel takes it along with the namespace, a moment later
            if (LINKS / layout.link).exists():
                raise
    for remembered in CNI_RESULTS.glob(f"{layout.pod_network}-*"):
        remembered.unlink()
    shutil.rmtree(Path("/run/cni") / layout.pod_network, ignore_errors=True)
