"""What the gateway does beyond passing calls on: it joins the answers of several services. gRPC and REST both use it.

It decides nothing about money or tasks: the ledger and the scheduler do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.gateway.v1 import gateway_pb2
from talkoo_api.ledger.v1 import service_pb2, state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2

from talkoo_core.errors import Conflict, Exhausted, NotFound, Unavailable
from talkoo_gateway.blob_transfers import BlobTransfers
from talkoo_gateway.placement_streams import OUTBOUND_ONLY, PlacementStream, Timed, Trouble
from talkoo_gateway.quotes import can_be_dialled, choose, model_key, only_dials_out, parse_version
from talkoo_gateway.upstreams import Upstreams, called, streamed

MAX_STREAMS = 256
"""Readers of logs and progress at once."""
MAX_LOG_LINES = 100_000
INFER_TIMEOUT_S = 130.0
"""A node may have to load the model first."""

T = TypeVar("T", bound=Timed)


class Desk:
    """The joined answers, over the services of one organization."""

    def __init__(self, upstreams: Upstreams, blobs: BlobTransfers) -> None:
        self.up = upstreams
        self.blobs = blobs
        self._streams = 0

    @property
    def streams(self) -> int:
        return self._streams

    # -- models ------------------------------------------------------------------------------------------------------

    async def model(self, text: str) -> state_pb2.ModelVersion:
        """A version, or the newest version of a model. Raises NotFound."""
        name, number = parse_version(text)
        if number is not None:
            return await self.up.reader.get("models", model_key(name, number), state_pb2.ModelVersion)
        request = service_pb2.ListRequest(module="models", prefix=f"{name}@", limit=1, reverse=True)
        answer = await called(self.up.ledger.List, request)
        if not answer.entries:
            raise NotFound(f"there is no model {name!r}; `talkoo models` lists them")
        return state_pb2.ModelVersion.FromString(answer.entries[0].value)

    async def quote(self, text: str) -> gateway_pb2.Quote:
        """Who would answer for a model now, and the price. Raises NotFound or Unavailable."""
        model = await self.model(text)
        answer = await called(self.up.scheduler.ListOffers, scheduler_pb2.ListOffersRequest())
        nodes = await self.up.reader.list("nodes", state_pb2.Node)
        return choose(model, answer.offers, {node.id: node for node in nodes}, self.up.organization)

    async def infer(self, request: agent_pb2.InferRequest) -> agent_pb2.InferResponse:
        """Pass a paid request on to the node that the ledger says was paid.

        Raises Conflict (code `outbound_only`) where only another organization's gateway can ask it.
        """
        paid = await self.up.reader.get("requests", request.request_id, state_pb2.ModelRequest)
        node = await self.up.reader.node(paid.node_id)
        if not can_be_dialled(node, self.up.organization):
            raise Conflict(f"{only_dials_out(node)}, this one of {self.up.organization} cannot", code=OUTBOUND_ONLY)
        agent = await self.up.agent(node.endpoint)
        answer: agent_pb2.InferResponse = await called(agent.Infer, request, INFER_TIMEOUT_S)
        return answer

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def logs(self, request: agent_pb2.LogsRequest) -> AsyncIterator[agent_pb2.LogLine]:
        """Lines of all nodes of a task: in order of time, or as they come when followed."""

        def open_stream(node: state_pb2.Node) -> AsyncIterator[agent_pb2.LogLine]:
            return self._agent_stream(node, lambda agent: agent.Logs(request))

        stream = PlacementStream(self.up.reader, request.task_id, open_stream, _away_line)
        async with self._counted():
            if request.follow:
                async for line in stream.follow():
                    yield line
                return
            lines: list[agent_pb2.LogLine] = []
            async for line in stream.once(await self._nodes_ever(request.task_id)):
                lines.append(line)
                if len(lines) > MAX_LOG_LINES:
                    raise Exhausted(f"the task wrote over {MAX_LOG_LINES} lines; ask for fewer with --tail")
            for line in sorted(lines, key=lambda line: line.time_ns):
                yield line

    async def progress(self, request: agent_pb2.ProgressRequest) -> AsyncIterator[agent_pb2.ProgressUpdate]:
        """Steps of all nodes as they come, until the task has ended."""

        def open_stream(node: state_pb2.Node) -> AsyncIterator[agent_pb2.ProgressUpdate]:
            return self._agent_stream(node, lambda agent: agent.Progress(request))

        stream: PlacementStream[agent_pb2.ProgressUpdate] = PlacementStream(
            self.up.reader, request.task_id, open_stream, lambda _: None
        )
        async with self._counted():
            async for update in stream.follow():
                yield update

    async def _agent_stream(self, node: state_pb2.Node, open_call: Callable[[Any], Any]) -> AsyncIterator[Any]:
        if not can_be_dialled(node, self.up.organization):
            raise Unavailable(only_dials_out(node), code=OUTBOUND_ONLY)
        async for item in streamed(open_call(await self.up.agent(node.endpoint))):
            yield item

    async def _nodes_ever(self, task_id: str) -> list[state_pb2.Node]:
        """Nodes of the present placement and of every segment so far, each once."""
        task = await self.up.reader.task(task_id)
        segments = await self.up.reader.list("segments", state_pb2.Segment, prefix=f"{task_id}/")
        shards = [shard for segment in segments for shard in segment.shards] + list(task.shards)
        ids = dict.fromkeys(shard.node_id for shard in shards)
        return list(await asyncio.gather(*(self.up.reader.node(node_id) for node_id in ids)))

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        if self._streams >= MAX_STREAMS:
            raise Exhausted(f"{MAX_STREAMS} readers follow tasks here already; try again later, or another gateway")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def _away_line(trouble: Trouble) -> agent_pb2.LogLine:
    """A line in the place of those that a lost node cannot send."""
    return agent_pb2.LogLine(node=trouble.node.name, text=f"(cannot be reached: {trouble.error.message})")
