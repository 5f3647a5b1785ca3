"""The network interface that carries gradients: the one that has the address where this node listens."""

from __future__ import annotations

import socket

import psutil


def interface_environment(host: str) -> dict[str, str]:
    """Variables that make gloo and NCCL use the interface of `host`; none when no interface has that address.

    Left alone, gloo takes what the machine's name resolves to, which in a container may be no address at all.
    """
    try:
        wanted = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return {}
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address in wanted for address in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}
