"""`python -m talkoo_agent.leave`: before the pod ends, have the shards handed back at the end of their segments.

Kubernetes runs it as the container's preStop hook, so that an upgrade costs no work: what a shard has committed is in
the blob store, and its next attempt goes on from there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from talkoo_api.agent.v1 import node_pb2

from talkoo_runtime.node_files import LEAVE_FILE, REPORT_FILE, read_message

POLL_S = 0.5


def leave(folder: Path, wait_s: float) -> bool:
    """Whether no shard was left within `wait_s`. The pod ends in either case."""
    asked_ns = time.time_ns()
    (folder / LEAVE_FILE).touch()
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        report = read_message(folder / REPORT_FILE, node_pb2.NodeReport)
        if report is not None and report.time_ns > asked_ns and not report.shards:
            return True
        time.sleep(POLL_S)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m talkoo_agent.leave", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the agent's node_folder")
    parser.add_argument("--wait-s", type=float, required=True, help="how long at most")
    arguments = parser.parse_args()
    empty = leave(arguments.folder, arguments.wait_s)
    sys.stdout.write("all shards are handed back\n" if empty else "some shards had not ended their segment\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
