"""Connections through a door and a relay over real gRPC, to servers that echo, end, or are not there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from talkoo_agent.relay import Door, relay
from talkoo_api.agent.v1 import agent_pb2, agent_pb2_grpc

TO = agent_pb2.RendezvousRequest(task_id="task-1", attempt=2)
LIMIT_S = 30.0


class Far(agent_pb2_grpc.AgentServicer):
    """The agent of rank 0, without its checks."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[agent_pb2.RendezvousRequest] = []
        self.ended = asyncio.Event()

    async def Relay(self, requests: Any, context: Any) -> AsyncIterator[agent_pb2.RelayChunk]:  # noqa: N802
        self.asked.append((await anext(aiter(requests))).to)
        try:
            async for chunk in relay("127.0.0.1", self.port, requests):
                yield chunk
        finally:
            self.ended.set()


@pytest.fixture
async def far() -> AsyncIterator[tuple[Far, Door]]:
    servicer, server = Far(), grpc.aio.server()
    agent_pb2_grpc.add_AgentServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    async def begin() -> Any:
        return agent_pb2_grpc.AgentStub(channel).Relay()

    door = Door(TO, begin)
    yield servicer, door
    await door.close()
    await channel.close()
    await server.stop(0)


async def listen(handle: Any) -> asyncio.Server:
    return await asyncio.start_server(handle, "127.0.0.1", 0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_bytes_go_both_ways_on_several_connections_and_an_end_arrives(far: tuple[Far, Door]) -> None:
    servicer, door = far
    async with await listen(echo) as server:
        servicer.port = server.sockets[0].getsockname()[1]
        host, port = await door.open()

        async def one(data: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(host, port)
            sending = asyncio.create_task(_send(writer, data))
            answer = await asyncio.wait_for(reader.read(-1), LIMIT_S)
            await sending
            writer.close()
            return answer

        sent = [os.urandom(3_000_000), b"x", os.urandom(70_000)]
        assert await asyncio.gather(*map(one, sent)) == sent
    assert servicer.asked == [TO] * 3


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    writer.write_eof()


async def test_a_rank_0_that_goes_away_ends_the_trainers_connection(far: tuple[Far, Door]) -> None:
    async def greet_and_go(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    servicer, door = far
    async with await listen(greet_and_go) as server:
        servicer.port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(*await door.open())
        assert await asyncio.wait_for(reader.read(-1), LIMIT_S) == b"hello"
        writer.close()
        await asyncio.wait_for(servicer.ended.wait(), LIMIT_S)


async def test_where_nobody_listens_the_connection_ends(far: tuple[Far, Door]) -> None:
    servicer, door = far
    async with await listen(echo) as server:
        servicer.port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection(*await door.open())
    assert await asyncio.wait_for(reader.read(-1), LIMIT_S) == b""
    writer.close()


async def test_a_closed_door_leaves_no_stream(far: tuple[Far, Door]) -> None:
    servicer, door = far
    async with await listen(echo) as server:
        servicer.port = server.sockets[0].getsockname()[1]
        host, port = await door.open()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"x")
        assert await asyncio.wait_for(reader.readexactly(1), LIMIT_S) == b"x"
        await door.close()
        await asyncio.wait_for(servicer.ended.wait(), LIMIT_S)
        assert await asyncio.wait_for(reader.read(-1), LIMIT_S) == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, port)
