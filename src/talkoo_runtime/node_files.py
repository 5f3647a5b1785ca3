"""The folder that an agent shares with the keeper of its Kubernetes node: what each leaves for the other.

Files are replaced as a whole, so a reader sees the old or the new. What is not there yet, or cannot be read, counts as
nothing said: neither side may end the other's work.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from talkoo_runtime.disk import write_atomic

log = logging.getLogger(__name__)
REPORT_FILE, ORDERS_FILE, PODS_FILE = "node.json", "orders.json", "pods.json"
LEAVE_FILE = "leave"
"""There when the pod is about to end (`python -m talkoo_agent.leave`)."""

M = TypeVar("M", bound=Message)


def write_message(path: Path, message: Message) -> None:
    """As JSON, with our field names in camel case. Raises Exhausted when the disk is full."""
    write_atomic(path, json_format.MessageToJson(message, indent=1).encode())


def read_message(path: Path, kind: type[M]) -> M | None:
    """None when there is none."""
    try:
        return json_format.Parse(path.read_bytes(), kind(), ignore_unknown_fields=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, json_format.ParseError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return None
