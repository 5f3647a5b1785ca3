"""Names, addresses and folders of one cluster. What lies outside its folder carries its name, so that it is found."""

from __future__ import annotations

import re
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from talkoo_core.errors import InvalidInput

MAX_NAME = 8
"""A network interface's name has at most 15 characters; ours add a prefix."""
MAX_NODES = 9
_NAME = re.compile(rf"[a-z][a-z0-9]{{0,{MAX_NAME - 1}}}")
FIRST_NETWORK, NETWORKS = 64, 64
"""10.64 to 10.127, one /16 for each cluster."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`name` must be a short lower-case word."""

    name: str
    nodes: int = 2

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidInput(f"{self.name!r} is no name for a cluster: a lower-case word of up to {MAX_NAME} letters")
        if not 0 <= self.nodes <= MAX_NODES:
            raise InvalidInput(f"a cluster here has 0 to {MAX_NODES} nodes, not {self.nodes}")

    @property
    def folder(self) -> Path:
        """Short, because paths of sockets are."""
        return Path(tempfile.gettempdir()) / f"talkoo-cluster-{self.name}"

    @property
    def network(self) -> str:
        """The first two numbers of every address."""
        return f"10.{FIRST_NETWORK + zlib.crc32(self.name.encode()) % NETWORKS}"

    @property
    def network_namespace(self) -> str:
        return f"talkoo-{self.name}"

    @property
    def link(self) -> str:
        """This machine's end of the link to the cluster."""
        return f"tkc-{self.name}"

    @property
    def outside_address(self) -> str:
        """This machine's, as the cluster sees it."""
        return f"{self.network}.0.254"

    @property
    def cgroup(self) -> str:
        return f"talkoo-{self.name}"

    @property
    def pod_network(self) -> str:
        """Name of the CNI network."""
        return f"talkoo-{self.name}"

    @property
    def api_address(self) -> str:
        return f"{self.network}.0.1"

    @property
    def api_port(self) -> int:
        return 6443

    @property
    def api_url(self) -> str:
        return f"https://{self.api_address}:{self.api_port}"

    @property
    def pods_cidr(self) -> str:
        return f"{self.network}.0.0/16"

    @property
    def services_cidr(self) -> str:
        return f"{self.network}.240.0/20"

    @property
    def api_service(self) -> str:
        return f"{self.network}.240.1"

    @property
    def dns_service(self) -> str:
        return f"{self.network}.240.10"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    def node_names(self) -> list[str]:
        return [f"{self.name}-{number}" for number in range(1, self.nodes + 1)]

    def node_address(self, number: int) -> str:
        """Of the n-th node, counted from 1."""
        return f"{self.network}.0.{10 + number}"

    def node_pods_cidr(self, number: int) -> str:
        return f"{self.network}.{number}.0/24"

    def node_folder(self, number: int) -> Path:
        return self.folder / f"node-{number}"

    def node_socket(self, number: int) -> Path:
        return self.node_folder(number) / "containerd.sock"
