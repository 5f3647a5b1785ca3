"""Connections to what stands behind the gateway: own ledger, scheduler and validator, the blobs, any agent."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import grpc
from talkoo_api.ledger.v1 import service_pb2_grpc
from talkoo_api.scheduler.v1 import scheduler_pb2_grpc
from talkoo_api.validator.v1 import validator_pb2_grpc

from talkoo_gateway.settings import GatewaySettings
from talkoo_runtime.ledger_client import LedgerClient

CALL_TIMEOUT_S = 15.0
MAX_AGENT_CHANNELS = 64
"""Least recently used ones are closed beyond that."""


class Upstreams:
    """Stubs over mutual TLS, made once. `close` ends all connections."""

    def __init__(self, settings: GatewaySettings, blobs: Any) -> None:
        self._settings = settings
        self._channels: list[grpc.aio.Channel] = []
        self._agents: OrderedDict[str, tuple[grpc.aio.Channel, Any]] = OrderedDict()
        self.blobs = blobs
        self.ledger: Any = service_pb2_grpc.LedgerStub(self._open(settings.ledger))  # type: ignore[no-untyped-call]
        self.scheduler: Any = scheduler_pb2_grpc.SchedulerStub(self._open(settings.scheduler))  # type: ignore[no-untyped-call]
        self.validator: Any = validator_pb2_grpc.ValidatorStub(self._open(settings.validator))  # type: ignore[no-untyped-call]
        self.reader = LedgerClient(self.ledger)
        """Typed reading of the ledger. It signs nothing: the gateway has no key."""
