"""Ports for servers that a test or a benchmark starts: none twice in a process, none that a connection may take.

Asking the kernel for port 0 gives one of the range from which outgoing connections get theirs, so between the answer
and the server's start somebody else may have it, and two questions may have one answer.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

FIRST_PORT = 10_000
RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
USUAL_RANGE_START = 32_768


def _range_start() -> int:
    """The first port that an outgoing connection may have here."""
    return int(RANGE_FILE.read_text().split()[0]) if RANGE_FILE.exists() else USUAL_RANGE_START


_COUNT = max(_range_start() - FIRST_PORT, 1)
_next = int.from_bytes(os.urandom(4), "big") % _COUNT
"""Processes that run side by side begin at different places."""


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """On loopback. Raises OSError when none is left."""
    global _next
    found: list[int] = []
    for _ in range(_COUNT):
        if len(found) == count:
            return found
        port = FIRST_PORT + _next
        _next = (_next + 1) % _COUNT
        if _is_free(port):
            found.append(port)
    raise OSError(f"no {count} ports are free from {FIRST_PORT} on")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
