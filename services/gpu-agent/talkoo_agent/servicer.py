"""The agent's gRPC service: decode, check who calls, answer. Rules live elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from talkoo_api.agent.v1 import agent_pb2, agent_pb2_grpc

from talkoo_agent.node import Node
from talkoo_agent.relay import relay
from talkoo_agent.serving import Serving
from talkoo_agent.trainer_messages import Listening
from talkoo_agent.work import Work
from talkoo_core.errors import InvalidInput, NotFound, PermissionDenied, Unavailable
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
        listening = self._listening(request)
        return agent_pb2.RendezvousResponse(host=listening.host, port=listening.port)

    async def Relay(
        self, requests: AsyncIterator[agent_pb2.RelayChunk], context: Any
    ) -> AsyncIterator[agent_pb2.RelayChunk]:
        """To rank 0 here, for the agent of another node of the same gang."""
        identity = identity_of(context)
        require(identity, roles={"agent"})
        first = await anext(aiter(requests), None)
        if first is None or not first.to.task_id:
            raise InvalidInput("the first chunk of a relay names the task and attempt", code="bad_relay")
        listening = self._listening(first.to)
        task = await self._node.ledger.task(first.to.task_id)
        gang = [await self._node.ledger.node(shard.node_id) for shard in task.shards]
        if (identity.organization, identity.name) not in {(node.organization, node.name) for node in gang}:
            raise PermissionDenied(f"{identity} has no part in {first.to.task_id}", code="not_in_gang")
        async for chunk in relay(listening.host, listening.port, requests):
            yield chunk

    def _listening(self, to: agent_pb2.RendezvousRequest) -> Listening:
        """Raises Unavailable (code `not_listening`)."""
        shard = self._work.shard(to.task_id, to.attempt)
        if shard is None or shard.listening is None:
            raise Unavailable(
                f"rank 0 of {to.task_id}, attempt {to.attempt}, does not listen here yet; ask again",
                code="not_listening",
            )
        return shard.listening

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
