"""The gateway's gRPC service: who may call, and where each call goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from talkoo_api.ledger.v1 import service_pb2, state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2
from talkoo_api.validator.v1 import validator_pb2

from talkoo_gateway.desk import Desk
from talkoo_gateway.upstreams import called, streamed
from talkoo_runtime.blobs import SHA256_KEY
from talkoo_runtime.identity import identity_of, require

CALLERS = {"user", "supervisor", "gateway"}
BLOB_CALLERS = CALLERS | {"agent", "validator"}
"""Services of members whose own cluster has no blob store."""
WAIT_MARGIN_S = 10.0
COUNT_TIMEOUT_S = 180.0
"""A program is run once, after torch was loaded."""

R = TypeVar("R")


class GatewayServicer(gateway_pb2_grpc.GatewayServicer):
    """Each call checks the caller's role, then goes to one service of the organization, or to the desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._up = desk.up

    async def Broadcast(self, request: service_pb2.BroadcastRequest, context: Any) -> service_pb2.BroadcastResponse:
        return await self._pass(self._up.ledger.Broadcast, request, context)

    async def WaitTx(self, request: service_pb2.WaitTxRequest, context: Any) -> service_pb2.TxResult:
        _admit(context)
        return await called(self._up.ledger.WaitTx, request, request.timeout_ms / 1000 + WAIT_MARGIN_S)

    async def GetStatus(self, request: service_pb2.GetStatusRequest, context: Any) -> service_pb2.Status:
        return await self._pass(self._up.ledger.GetStatus, request, context)

    async def Get(self, request: service_pb2.GetRequest, context: Any) -> service_pb2.GetResponse:
        return await self._pass(self._up.ledger.Get, request, context)

    async def List(self, request: service_pb2.ListRequest, context: Any) -> service_pb2.ListResponse:
        return await self._pass(self._up.ledger.List, request, context)

    async def GetSupply(self, request: service_pb2.GetSupplyRequest, context: Any) -> state_pb2.Supply:
        return await self._pass(self._up.ledger.GetSupply, request, context)

    async def GetParams(self, request: service_pb2.GetParamsRequest, context: Any) -> state_pb2.Params:
        return await self._pass(self._up.ledger.GetParams, request, context)

    async def GetGenesis(self, request: service_pb2.GetGenesisRequest, context: Any) -> service_pb2.Genesis:
        return await self._pass(self._up.ledger.GetGenesis, request, context)

    async def Blocks(self, request: service_pb2.BlocksRequest, context: Any) -> AsyncIterator[service_pb2.RawBlock]:
        _admit(context)
        async for block in streamed(self._up.ledger.Blocks(request)):
            yield block

    async def Follow(self, request: service_pb2.FollowRequest, context: Any) -> AsyncIterator[service_pb2.BlockEvents]:
        _admit(context)
        async for block in streamed(self._up.ledger.Follow(request)):
            yield block

    async def PutBlob(
        self, request_iterator: AsyncIterator[gateway_pb2.BlobChunk], context: Any
    ) -> gateway_pb2.BlobInfo:
        _admit(context, BLOB_CALLERS)

        async def parts() -> AsyncIterator[bytes]:
            async for chunk in request_iterator:
                yield chunk.data

        announced = next((str(value) for key, value in context.invocation_metadata() if key == SHA256_KEY), "")
        return await self._desk.blobs.put(parts(), announced)

    async def GetBlob(self, request: gateway_pb2.GetBlobRequest, context: Any) -> AsyncIterator[gateway_pb2.BlobChunk]:
        _admit(context, BLOB_CALLERS)
        async for part in self._desk.blobs.get(request.sha256):
            yield gateway_pb2.BlobChunk(data=part)

    async def StatBlob(self, request: gateway_pb2.GetBlobRequest, context: Any) -> gateway_pb2.BlobInfo:
        _admit(context, BLOB_CALLERS)
        return await self._desk.blobs.stat(request.sha256)

    async def ListOffers(
        self, request: scheduler_pb2.ListOffersRequest, context: Any
    ) -> scheduler_pb2.ListOffersResponse:
        return await self._pass(self._up.scheduler.ListOffers, request, context)

    async def Explain(self, request: scheduler_pb2.ExplainRequest, context: Any) -> scheduler_pb2.Explanation:
        return await self._pass(self._up.scheduler.Explain, request, context)

    async def ListAudits(
        self, request: validator_pb2.ListAuditsRequest, context: Any
    ) -> validator_pb2.ListAuditsResponse:
        return await self._pass(self._up.validator.ListAudits, request, context)

    async def CountFlops(
        self, request: validator_pb2.CountFlopsRequest, context: Any
    ) -> validator_pb2.CountFlopsResponse:
        _admit(context)
        return await called(self._up.validator.CountFlops, request, COUNT_TIMEOUT_S)

    async def Logs(self, request: agent_pb2.LogsRequest, context: Any) -> AsyncIterator[agent_pb2.LogLine]:
        _admit(context)
        async for line in self._desk.logs(request):
            yield line

    async def Progress(
        self, request: agent_pb2.ProgressRequest, context: Any
    ) -> AsyncIterator[agent_pb2.ProgressUpdate]:
        _admit(context)
        async for update in self._desk.progress(request):
            yield update

    async def QuoteModel(self, request: gateway_pb2.QuoteModelRequest, context: Any) -> gateway_pb2.Quote:
        _admit(context)
        return await self._desk.quote(request.version)

    async def Infer(self, request: agent_pb2.InferRequest, context: Any) -> agent_pb2.InferResponse:
        _admit(context)
        return await self._desk.infer(request)

    async def _pass(self, method: Callable[..., Awaitable[R]], request: Any, context: Any) -> R:
        _admit(context)
        return await called(method, request)


def _admit(context: Any, roles: set[str] = CALLERS) -> None:
    """Users, supervisors and other gateways, of any member. Raises PermissionDenied."""
    require(identity_of(context), roles=roles)
