"""Where things stand in etcd, and their form there. The only module that knows both."""

from __future__ import annotations

import msgspec
from talkoo_api.scheduler.v1 import scheduler_pb2


class Keys:
    """Key names under one federation."""

    def __init__(self, federation: str) -> None:
        root = f"/talkoo/{federation}"
        self.offers = f"{root}/offers/"
        self.shared = f"{root}/shared/"
        self.decisions = f"{root}/decisions/"
        self.reports = f"{root}/reports/"
        self.leader = f"{root}/scheduler-leader"

    def offer(self, node_id: str) -> str:
        return self.offers + node_id

    def shared_by(self, organization: str) -> str:
        """Offers that an organization's scheduler shares from a cluster of its own."""
        return f"{self.shared}{organization}/"

    def decision(self, task_id: str) -> str:
        return self.decisions + task_id

    def report(self, task_id: str) -> str:
        return self.reports + task_id


class StoredReason(msgspec.Struct, frozen=True):
    node_id: str
    name: str
    fits: bool
    code: str
    reason: str


class StoredDecision(msgspec.Struct, frozen=True):
    """The leader's last word on a task."""

    task_id: str
    summary: str
    nodes: list[StoredReason]
    decided_at_ns: int
    leader: str


class StoredReport(msgspec.Struct, frozen=True):
    """The last trouble that a node reported of a task."""

    attempt: int
    node: str
    kind: str
    message: str


def explanation_of(stored: StoredDecision) -> scheduler_pb2.Explanation:
    return scheduler_pb2.Explanation(
        task_id=stored.task_id,
        summary=stored.summary,
        nodes=[
            scheduler_pb2.NodeReason(node_id=n.node_id, name=n.name, fits=n.fits, reason=n.reason) for n in stored.nodes
        ],
        decided_at_ns=stored.decided_at_ns,
        leader=stored.leader,
    )
