"""The table of REST operations: routing, checks and the OpenAPI document are all read from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import BaseModel
from starlette.responses import Response
from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.gateway.v1 import gateway_pb2
from talkoo_api.ledger.v1 import service_pb2, state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2
from talkoo_api.validator.v1 import validator_pb2

from talkoo_gateway import rest_reads as reads
from talkoo_gateway import rest_writes as writes
from talkoo_gateway.calls import Call
from talkoo_gateway.schemas import (
    AuditQuery,
    BlockRange,
    Health,
    InferBody,
    LogQuery,
    Nothing,
    Page,
    SignedTransaction,
    TransactionHash,
    Wait,
    model_of,
    page_of,
)

JSON = "application/json"
EVENTS = "text/event-stream"
BINARY = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `gives` is None where the answer is not JSON of a model."""

    method: str
    path: str
    summary: str
    handler: Callable[[Call], Awaitable[Response]]
    gives: type[BaseModel] | None
    query: type[BaseModel] = Nothing
    body: type[BaseModel] | None = None
    status: int = 200
    media: str = JSON
    token: bool = False
    binary_body: bool = False


_TASK = "/v1/tasks/{task}"

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/healthz", "The process runs.", reads.healthz, Health),
    Operation("GET", "/readyz", "The ledger node answers and has caught up.", reads.readyz, Health),
    Operation("GET", "/v1/status", "Height and peers.", reads.status, model_of(service_pb2.Status.DESCRIPTOR)),
    Operation("GET", "/v1/supply", "Where every token is.", reads.supply, model_of(state_pb2.Supply.DESCRIPTOR)),
    Operation("GET", "/v1/params", "The ledger's parameters.", reads.params, model_of(state_pb2.Params.DESCRIPTOR)),
    Operation("GET", "/v1/genesis", "The genesis file.", reads.genesis, None),
    Operation(
        "GET",
        "/v1/accounts",
        "Accounts, by address.",
        reads.get_list("accounts", state_pb2.Account),
        page_of(state_pb2.Account.DESCRIPTOR),
        query=Page,
    ),
    Operation(
        "GET",
        "/v1/accounts/{account}",
        "One account.",
        reads.get_one("accounts", state_pb2.Account, "account"),
        model_of(state_pb2.Account.DESCRIPTOR),
    ),
    Operation(
        "GET",
        "/v1/organizations",
        "Member organizations.",
        reads.get_list("organizations", state_pb2.Organization),
        page_of(state_pb2.Organization.DESCRIPTOR),
        query=Page,
    ),
    Operation(
        "GET",
        "/v1/nodes",
        "Registered nodes.",
        reads.get_list("nodes", state_pb2.Node),
        page_of(state_pb2.Node.DESCRIPTOR),
        query=Page,
    ),
    Operation(
        "GET",
        "/v1/nodes/{node}",
        "One node.",
        reads.get_one("nodes", state_pb2.Node, "node"),
        model_of(state_pb2.Node.DESCRIPTOR),
    ),
    Operation(
        "GET",
        "/v1/offers",
        "What connected nodes offer now.",
        reads.offers,
        model_of(scheduler_pb2.ListOffersResponse.DESCRIPTOR),
    ),
    Operation(
        "GET",
        "/v1/tasks",
        "Tasks, by id.",
        reads.get_list("tasks", state_pb2.Task),
        page_of(state_pb2.Task.DESCRIPTOR),
        query=Page,
    ),
    Operation(
        "GET",
        _TASK,
        "One task.",
        reads.get_one("tasks", state_pb2.Task, "task"),
        model_of(state_pb2.Task.DESCRIPTOR),
    ),
    Operation(
        "GET",
        f"{_TASK}/segments",
        "Segments of a task: commitments, draws, verdicts.",
        reads.get_list("segments", state_pb2.Segment, below="task"),
        page_of(state_pb2.Segment.DESCRIPTOR),
        query=Page,
    ),
    Operation(
        "GET",
        f"{_TASK}/explain",
        "Why a task waits, runs or failed.",
        reads.explain,
        model_of(scheduler_pb2.Explanation.DESCRIPTOR),
    ),
    Operation(
        "GET",
        f"{_TASK}/logs",
        "Lines of all nodes of a task; server-sent events with ?follow=true.",
        reads.logs,
        page_of(agent_pb2.LogLine.DESCRIPTOR),
        query=LogQuery,
    ),
    Operation(
        "GET",
        f"{_TASK}/progress",
        "Steps and losses as server-sent events.",
        reads.progress,
        model_of(agent_pb2.ProgressUpdate.DESCRIPTOR),
        media=EVENTS,
    ),
    Operation(
        "GET",
        "/v1/audits",
        "Audits as this organization's validator sees them.",
        reads.audits,
        model_of(validator_pb2.ListAuditsResponse.DESCRIPTOR),
        query=AuditQuery,
    ),
    Operation(
        "GET",
        "/v1/models",
        "Model versions.",
        reads.get_list("models", state_pb2.ModelVersion),
        page_of(state_pb2.ModelVersion.DESCRIPTOR),
        query=Page,
    ),
    Operation(
        "GET",
        "/v1/models/{version}",
        "One version, or the newest of a model.",
        reads.model,
        model_of(state_pb2.ModelVersion.DESCRIPTOR),
    ),
    Operation(
        "GET",
        "/v1/models/{version}/quote",
        "Which node would answer, and the price.",
        reads.quote,
        model_of(gateway_pb2.Quote.DESCRIPTOR),
    ),
    Operation(
        "GET",
        "/v1/payments",
        "Payments in the order of the chain.",
        reads.get_list("payments", state_pb2.Payment),
        page_of(state_pb2.Payment.DESCRIPTOR),
        query=Page,
    ),
    Operation(
        "GET",
        "/v1/blocks",
        "Decided blocks and their events.",
        reads.blocks,
        page_of(service_pb2.BlockEvents.DESCRIPTOR),
        query=BlockRange,
    ),
    Operation(
        "POST",
        "/v1/transactions",
        "Send a signed transaction; its result with ?wait=.",
        writes.send_transaction,
        TransactionHash,
        query=Wait,
        body=SignedTransaction,
        status=202,
        binary_body=True,
    ),
    Operation(
        "GET",
        "/v1/transactions/{hash}",
        "The result of a transaction.",
        reads.transaction,
        model_of(service_pb2.TxResult.DESCRIPTOR),
        query=Wait,
    ),
    Operation(
        "POST",
        "/v1/blobs",
        "Store bytes under their SHA-256.",
        writes.put_blob,
        model_of(gateway_pb2.BlobInfo.DESCRIPTOR),
        status=201,
        token=True,
        binary_body=True,
    ),
    Operation("GET", "/v1/blobs/{sha256}", "Stored bytes.", reads.blob, None, media=BINARY),
    Operation(
        "GET",
        "/v1/requests/{request}",
        "One request to a model.",
        reads.get_one("requests", state_pb2.ModelRequest, "request"),
        model_of(state_pb2.ModelRequest.DESCRIPTOR),
    ),
    Operation(
        "POST",
        "/v1/requests/{request}/infer",
        "The answer to a paid request.",
        writes.infer,
        model_of(agent_pb2.InferResponse.DESCRIPTOR),
        body=InferBody,
        token=True,
    ),
)
