"""A trainer's connections to rank 0 of another organization, in gRPC streams: one port, mutual TLS, only outward.

`Door` is where the trainer connects on its own machine; each connection becomes an `Agent.Relay` stream to the agent of
rank 0, whose `relay` connects to where rank 0 listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from talkoo_api.agent.v1 import agent_pb2

from talkoo_core.errors import Unavailable

log = logging.getLogger(__name__)
CHUNK_BYTES = 256 * 1024
LOOPBACK = "127.0.0.1"

Chunks = AsyncIterator[agent_pb2.RelayChunk]
OpenRelay = Callable[[], Awaitable[Any]]
"""Begins an `Agent.Relay` call and gives it."""


class Door:
    """Open until closed. What goes wrong on a connection ends it, and the trainer says so by its own words."""

    def __init__(self, to: agent_pb2.RendezvousRequest, open_relay: OpenRelay) -> None:
        self._to = to
        self._open_relay = open_relay
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> tuple[str, int]:
        """Where the trainer connects."""
        self._server = await asyncio.start_server(self._accepted, LOOPBACK, 0)
        host, port = self._server.sockets[0].getsockname()
        return str(host), int(port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        call = await self._open_relay()
        try:
            await call.write(agent_pb2.RelayChunk(to=self._to))
            async with asyncio.TaskGroup() as both:
                both.create_task(_send(reader, call))
                both.create_task(_receive(call, writer))
        except* (grpc.aio.AioRpcError, asyncio.InvalidStateError, OSError) as errors:
            log.warning("%s: the way to rank 0 ended: %s", self._to.task_id, _words(errors.exceptions[0]))
        finally:
            call.cancel()
            await _close(writer)
            self._connections.discard(task)


async def relay(
    host: str, port: int, chunks: AsyncIterator[agent_pb2.RelayChunk]
) -> AsyncIterator[agent_pb2.RelayChunk]:
    """The other end: what `chunks` bring goes to (host, port), what comes from there is yielded.

    Raises Unavailable (code `not_listening`) when nobody listens.
    """
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise Unavailable(f"rank 0 does not listen at {host}:{port} any more: {error}", code="not_listening") from error
    inward = asyncio.create_task(_write_all(chunks, writer))
    try:
        with contextlib.suppress(OSError):  # rank 0 has gone: the stream ends, and the caller's trainer sees that
            while data := await reader.read(CHUNK_BYTES):
                yield agent_pb2.RelayChunk(data=data)
    finally:
        inward.cancel()
        await asyncio.gather(inward, return_exceptions=True)
        await _close(writer)


async def _write_all(chunks: Chunks, writer: asyncio.StreamWriter) -> None:
    """Until the caller has no more to say."""
    async for chunk in chunks:
        writer.write(chunk.data)
        await writer.drain()
    writer.write_eof()


async def _send(reader: asyncio.StreamReader, call: Any) -> None:
    while data := await reader.read(CHUNK_BYTES):
        await call.write(agent_pb2.RelayChunk(data=data))
    await call.done_writing()


async def _receive(call: Any, writer: asyncio.StreamWriter) -> None:
    async for chunk in call:
        writer.write(chunk.data)
        await writer.drain()
    await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):  # the other end was quicker
        await writer.wait_closed()


def _words(error: BaseException) -> str:
    return str(error.details()) if isinstance(error, grpc.aio.AioRpcError) else str(error)
