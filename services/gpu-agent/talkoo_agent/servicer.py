"""The agent's gRPC service: decode, check who calls, answer. Rules live elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from talkoo_api.agent.v1 import agent_pb2, agent_pb2_grpc

from talkoo_agent.node import Node
from talkoo_agent.serving import Serving
from talkoo_agent.work import Work
from talkoo_core.errors import NotFound, Unavailable
from talkoo_runtime.identity import identity_of, require

READERS = {"gateway", "user", "supervisor", "scheduler"}
"""Gateways of any member carry their users' questions: a task's owner may sit in another organization."""


class AgentServicer(agent_pb2_grpc.AgentServicer):
    def __init__(self, node: Node, work: Work, serving: Serving) -> None:
        self._node, self._work, self._serving = node, work, serving

    async def Rendezvous(  # named by the proto
        self, request: agent_pb2.RendezvousRequest, context: Any
    ) -> agent_pb2.RendezvousResponse:
        require(identity_of(context), roles={"agent"})
        shard = self._work.shard(request.task_id, request.attempt)
        if shard is None or shard.listening is None:
            raise Unavailable(
                f"rank 0 of {request.task_id}, attempt {request.attempt}, does not listen here yet; ask again",
                code="not_listening",
            )
        return agent_pb2.RendezvousResponse(host=shard.listening.host, port=shard.listening.port)

    async def Logs(self, request: agent_pb2.LogsRequest, context: Any) -> AsyncIterator[agent_pb2.LogLine]:
        require(identity_of(context), roles=READERS)
        journal = self._node.logs.known(request.task_id)
        if journal is None:
            raise NotFound(f"{self._node.settings.name} has no log of {request.task_id}", code="no_log")
        async for line in journal.read(follow=request.follow, tail=request.tail_lines):
            yield line

    async def Progress(
        self, request: agent_pb2.ProgressRequest, context: Any
    ) -> AsyncIterator[agent_pb2.ProgressUpdate]:
        require(identity_of(context), roles=READERS)
        journal = self._node.progress.known(request.task_id)
        if journal is None:
            raise NotFound(f"{self._node.settings.name} has no part in {request.task_id}", code="no_progress")
        async for update in journal.read(follow=True):
            yield update

    async def Infer(self, request: agent_pb2.InferRequest, context: Any) -> agent_pb2.InferResponse:
        require(identity_of(context), roles={"gateway", "user"})
        return await self._serving.infer(request)

    async def Describe(
        self,
        request: agent_pb2.DescribeRequest,  # an empty message
        context: Any,
    ) -> agent_pb2.Description:
        require(identity_of(context), roles=READERS | {"agent", "ledger", "validator"})
        settings, device = self._node.settings, self._node.device
        try:
            known = await self._node.ledger.node(self._node.id)
        except NotFound:
            raise Unavailable(f"{settings.name} is not registered yet; it measures itself", code="measuring") from None
        return agent_pb2.Description(
            node_id=self._node.id,
            name=settings.name,
            organization=settings.organization,
            hardware_class=known.hardware_class,
            device=device.description,
            memory_bytes=device.memory_bytes,
            speed_flops=known.speed_flops,
            power_mw=device.power_mw,
            power_source=device.power_source,
            running_tasks=self._work.running_tasks,
        )
