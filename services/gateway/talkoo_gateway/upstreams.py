"""Connections to what stands behind the gateway: own ledger, scheduler and validator, and any agent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from talkoo_api.agent.v1 import agent_pb2_grpc
from talkoo_api.ledger.v1 import service_pb2_grpc
from talkoo_api.scheduler.v1 import scheduler_pb2_grpc
from talkoo_api.validator.v1 import validator_pb2_grpc

from talkoo_gateway.settings import GatewaySettings
from talkoo_runtime.grpc_client import files_seen, raise_from_rpc, service_channel
from talkoo_runtime.ledger_client import LedgerClient

R = TypeVar("R")

CALL_TIMEOUT_S = 15.0
AGENT_GRACE_S = 60.0
MAX_AGENT_CHANNELS = 64
"""Least recently used ones are closed beyond that."""


class Upstreams:
    """Stubs over mutual TLS, made once. `close` ends all connections."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self.organization = settings.organization
        self._channels: list[grpc.aio.Channel] = []
        self._agents: OrderedDict[tuple[str, tuple[int, ...]], tuple[grpc.aio.Channel, Any]] = OrderedDict()
        self.ledger: Any = service_pb2_grpc.LedgerStub(self._open(settings.ledger))  # type: ignore[no-untyped-call]
        self.scheduler: Any = scheduler_pb2_grpc.SchedulerStub(self._open(settings.scheduler))  # type: ignore[no-untyped-call]
        self.validator: Any = validator_pb2_grpc.ValidatorStub(self._open(settings.validator))  # type: ignore[no-untyped-call]
        self.reader = LedgerClient(self.ledger)
        """Typed reading of the ledger. It signs nothing: the gateway has no key."""

    async def agent(self, endpoint: str) -> Any:
        """The stub of an agent of any organization; its channel is kept for the next call."""
        key = endpoint, files_seen(self._settings)
        known = self._agents.get(key)
        if known is None:
            channel = service_channel(self._settings, endpoint)
            known = (channel, agent_pb2_grpc.AgentStub(channel))  # type: ignore[no-untyped-call]
            self._agents[key] = known
            if len(self._agents) > MAX_AGENT_CHANNELS:
                _, (oldest, _stub) = self._agents.popitem(last=False)
                await oldest.close(AGENT_GRACE_S)
        self._agents.move_to_end(key)
        return known[1]

    async def close(self) -> None:
        for channel in [*self._channels, *(channel for channel, _ in self._agents.values())]:
            await channel.close()

    def _open(self, endpoint: str) -> grpc.aio.Channel:
        channel = service_channel(self._settings, endpoint)
        self._channels.append(channel)
        return channel


async def called(method: Callable[..., Awaitable[R]], request: Any, timeout_s: float = CALL_TIMEOUT_S) -> R:
    """One call to a service; a failure becomes our error family again, with its code."""
    try:
        return await method(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise_from_rpc(error)


async def streamed(call: Any) -> AsyncGenerator[Any, None]:
    """The messages of a streaming call; it is cancelled when the reader stops."""
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as error:
        raise_from_rpc(error)
    finally:
        call.cancel()
