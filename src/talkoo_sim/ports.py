"""Ports for servers that a test or a benchmark starts: none twice on a machine, none that a connection may take.

Asking the kernel for port 0 gives one of the range from which outgoing connections get theirs, so between the answer
and the server's start somebody else may have it, and two questions may have one answer. A port belongs to the process
that asked until that ends, also while no server listens there, so a killed server finds its port again.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path

FIRST_PORT, LAST_PORT = 10_000, 20_000
"""Behind them begins the range that `talkoo up` takes."""
RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
USUAL_RANGE_START = 32_768


def _range_start() -> int:
    """The first port that an outgoing connection may have here."""
    return int(RANGE_FILE.read_text().split()[0]) if RANGE_FILE.exists() else USUAL_RANGE_START


_COUNT = max(min(_range_start(), LAST_PORT) - FIRST_PORT, 1)
_next = int.from_bytes(os.urandom(4), "big") % _COUNT
"""Processes that run side by side begin at different places."""
_taken = -1
"""A file of which each process locks the bytes that are its ports' numbers; opened by the first question."""


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """On loopback. Raises OSError when none is left."""
    global _next, _taken
    if _taken < 0:
        path = Path(tempfile.gettempdir()) / f"talkoo-ports-{os.getuid()}"
        _taken = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    found: list[int] = []
    for _ in range(_COUNT):
        if len(found) == count:
            return found
        port = FIRST_PORT + _next
        _next = (_next + 1) % _COUNT
        if _is_mine(port) and _is_free(port):
            found.append(port)
    raise OSError(f"no {count} ports are free from {FIRST_PORT} to {FIRST_PORT + _COUNT - 1}")


def _is_mine(port: int) -> bool:
    """From now on, unless it is another process's. The kernel lets go of it when this process ends, however it does."""
    try:
        fcntl.lockf(_taken, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
