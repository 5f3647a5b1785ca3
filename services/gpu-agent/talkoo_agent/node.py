"""What the parts of the agent share: the node's key, its settings, its connections, what was said so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talkoo_api.agent.v1 import agent_pb2, node_pb2

from talkoo_agent.cards import Cards
from talkoo_agent.devices import Device
from talkoo_agent.journal import Journals
from talkoo_agent.nvml import GpuWatch
from talkoo_agent.settings import AgentSettings
from talkoo_agent.spare import Spare
from talkoo_agent.standing import Standing
from talkoo_core.signing import PrivateKey
from talkoo_runtime.blobs import BlobStore
from talkoo_runtime.ledger_client import LedgerClient


@dataclass(slots=True)
class Node:
    """`id` is the address of the node's key."""

    id: str
    key: PrivateKey
    settings: AgentSettings
    device: Device
    """Of each slot."""
    cards: Cards
    ledger: LedgerClient
    scheduler: Any
    """A SchedulerStub."""
    blobs: BlobStore
    spare: Spare
    watch: GpuWatch = field(default_factory=GpuWatch)
    standing: Standing = field(default_factory=Standing)
    orders: node_pb2.NodeOrders = field(default_factory=node_pb2.NodeOrders)
    """The newest of the node's keeper, and of a pod that is about to end."""
    pods: node_pb2.GpuPods = field(default_factory=node_pb2.GpuPods)
    """Who holds which GPU, where the keeper tells."""
    logs: Journals[agent_pb2.LogLine] = field(default_factory=Journals)
    progress: Journals[agent_pb2.ProgressUpdate] = field(default_factory=Journals)

    @property
    def folder(self) -> Path:
        return Path(self.settings.state_dir)

    @property
    def hand_back(self) -> str:
        """Why shards are to be given back after their present segment; empty when they are not."""
        return self.orders.drain if self.orders.hand_back else ""

    @property
    def host(self) -> str:
        """Where peers reach this node, as its own settings say."""
        return self.settings.listen.rpartition(":")[0]

    def log_line(self, task_id: str, rank: int, text: str) -> None:
        line = agent_pb2.LogLine(time_ns=time.time_ns(), node=self.settings.name, rank=rank, text=text)
        self.logs.of(task_id).write(line)

    def stage(self, task_id: str, attempt: int, stage: str, **values: Any) -> None:
        update = agent_pb2.ProgressUpdate(
            task_id=task_id,
            attempt=attempt,
            node=self.settings.name,
            time_ns=time.time_ns(),
            stage=stage,
            **values,
        )
        self.progress.of(task_id).write(update)
