"""What the parts of the agent share: the node's key, its settings, its connections, what was said so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talkoo_api.agent.v1 import agent_pb2

from talkoo_agent.devices import Device
from talkoo_agent.journal import Journals
from talkoo_agent.settings import AgentSettings
from talkoo_agent.spare import Spare
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
    ledger: LedgerClient
    scheduler: Any
    """A SchedulerStub."""
    blobs: BlobStore
    spare: Spare
    logs: Journals[agent_pb2.LogLine] = field(default_factory=Journals)
    progress: Journals[agent_pb2.ProgressUpdate] = field(default_factory=Journals)

    @property
    def folder(self) -> Path:
        return Path(self.settings.state_dir)

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
