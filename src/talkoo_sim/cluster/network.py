"""The cluster's own bridge with the nodes' addresses on it, and its CNI configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from talkoo_sim.cluster.binaries import binary, cni_folder
from talkoo_sim.cluster.commands import run
from talkoo_sim.cluster.layout import Layout

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
CNI_RESULTS = Path("/var/lib/cni/results")
"""Where the CNI library remembers what it gave to which container; it knows no other place."""


def make_bridge(layout: Layout) -> None:
    """A bridge that carries the addresses of API server and nodes: kubelet takes no address of loopback or a dummy."""
    ip = binary("ip")
    run([ip, "link", "add", layout.bridge, "type", "bridge"])
    for address in (layout.api_address, *(layout.node_address(number + 1) for number in range(layout.nodes))):
        run([ip, "address", "add", f"{address}/24", "dev", layout.bridge])
    run([ip, "link", "set", layout.bridge, "up"])
    FORWARDING.write_text("1")


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
        ],
    }
    (folder / "10-talkoo.conflist").write_text(json.dumps(configuration, indent=1))
    cni_folder()
    return folder


def remove_network(layout: Layout) -> None:
    """Bridge, links to pods that are gone, rules, remembered results. What is not there is fine."""
    ip, nft = binary("ip"), binary("nft")
    links = json.loads(run([ip, "-json", "address"]) or "[]")
    for link in links:
        addresses = [a.get("local", "") for a in link.get("addr_info", ())]
        ours = [a for a in addresses if a.startswith(f"{layout.network}.")]
        if link["ifname"] == layout.bridge or (link["ifname"].startswith("veth") and ours):
            run([ip, "link", "delete", link["ifname"]])
    tables = run([nft, "list", "tables"])
    for family in ("ip", "ip6"):
        if not _others(links, layout) and f"table {family} kube-proxy" in tables:
            run([nft, "delete", "table", family, "kube-proxy"])
    for remembered in CNI_RESULTS.glob(f"{layout.pod_network}-*"):
        remembered.unlink()
    shutil.rmtree(Path("/run/cni") / layout.pod_network, ignore_errors=True)


def _others(links: list[dict[str, object]], layout: Layout) -> bool:
    """Whether another cluster of ours is there; kube-proxy's table has one name for all."""
    prefix = layout.bridge.removesuffix(layout.name)
    return any(str(link["ifname"]).startswith(prefix) and link["ifname"] != layout.bridge for link in links)
