"""A channel whose calls with one request carry the caller's trace.

grpc.aio's own interceptors would do, but each of their calls runs in a task of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc.aio

from talkoo_runtime.telemetry import TRACEPARENT, traceparent


class TracedChannel(grpc.aio.Channel):
    """All that `channel` does."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, *method: Any, **more: Any) -> Any:
        return _traced(self._channel.unary_unary(*method, **more))

    def unary_stream(self, *method: Any, **more: Any) -> Any:
        return _traced(self._channel.unary_stream(*method, **more))

    def stream_unary(self, *method: Any, **more: Any) -> Any:
        return self._channel.stream_unary(*method, **more)

    def stream_stream(self, *method: Any, **more: Any) -> Any:
        return self._channel.stream_stream(*method, **more)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> TracedChannel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        await self.close()
        return None


def _traced(start: Callable[..., Any]) -> Callable[..., Any]:
    def call(request: Any, *, metadata: Any = None, **more: Any) -> Any:
        parent = traceparent()
        if parent:
            metadata = grpc.aio.Metadata(*(metadata or ()), (TRACEPARENT, parent))
        return start(request, metadata=metadata, **more)

    return call
