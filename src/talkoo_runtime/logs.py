"""Logging of a process: one plain line each to stderr, `time level service message`, UTC."""

from __future__ import annotations

import logging
import sys
import time

from talkoo_core.errors import InvalidInput

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)-7s {service} %(message)s"


def setup_logging(service: str, level: str = "info") -> None:
    """Send everything from `level` on to stderr. Raises InvalidInput for an unknown level."""
    if level not in LEVELS:
        raise InvalidInput(f"log_level {level!r} is none of {', '.join(LEVELS)}", code="bad_settings")
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(FORMAT.format(service=service), datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("asyncio", "urllib3", "etcd3aio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
