"""Paid requests to a model: the price is held until the node answers, or returned after the deadline."""

from __future__ import annotations

from msgspec.structs import replace

from talkoo_core.amounts import MAX_AMOUNT_UTLK, format_tlk
from talkoo_core.errors import Conflict, InsufficientFunds, NotFound, PermissionDenied
from talkoo_core.ids import born_id
from talkoo_ledger.context import Context
from talkoo_ledger.messages import CompleteRequest, RequestModel
from talkoo_ledger.models import model_by_version
from talkoo_ledger.records import ModelRequest
from talkoo_ledger.state import model_key
from talkoo_ledger.transfers import credit, debit


def request_model(context: Context, sender: str, message: RequestModel) -> None:
    state = context.state
    model = model_by_version(state, message.version)
    node = state.nodes.get(message.node_id)
    if node is None:
        raise NotFound(f"there is no node {message.node_id}", code="unknown_node")
    if node.jailed:
        raise Conflict(f"{node.name} is jailed for forging; choose another node", code="node_jailed")
    price = node.request_price_utlk + model.request_price_utlk
    if message.price_utlk < price:
        raise InsufficientFunds(
            f"a request to {model.version} on {node.name} costs {format_tlk(price)}, "
            f"{format_tlk(message.price_utlk)} were offered",
            code="price_too_low",
        )
    debit(state, sender, message.price_utlk, "the request")
    request_id = born_id("req", context.tx_hash)
    if state.requests.get(request_id) is not None:
        raise Conflict(f"{request_id} exists: two transactions with similar hashes; send it again", code="id_taken")
    request = ModelRequest(
        id=request_id,
        version=model.version,
        sender=sender,
        node_id=node.id,
        input_sha256=message.input_sha256,
        price_utlk=message.price_utlk,
        height=context.height,
        state="open",
        deadline_height=context.height + context.params.request_deadline_blocks,
    )
    state.requests.put(request_id, request)
    context.born_id = request_id
    context.record_payment("escrow", sender, f"escrow:{request_id}", request.price_utlk, f"request:{request_id}")
    context.emit(
        "request_opened",
        request_id,
        version=model.version,
        node=node.id,
        sender=sender,
        price_utlk=request.price_utlk,
    )


def complete_request(context: Context, sender: str, message: CompleteRequest) -> None:
    state = context.state
    request = state.requests.get(message.request_id)
    if request is None:
        raise NotFound(f"there is no request {message.request_id!r}", code="unknown_request")
    if request.node_id != sender:
        raise PermissionDenied(f"{request.id} is for another node to answer", code="not_your_request")
    if request.state != "open":
        raise Conflict(f"{request.id} is {request.state} already", code="request_closed")
    model = model_by_version(state, request.version)
    node = state.nodes[sender]
    for_owner = min(model.request_price_utlk, request.price_utlk)
    for_node = request.price_utlk - for_owner
    proof, pool = f"request:{request.id}", f"escrow:{request.id}"
    credit(state, sender, for_node)
    context.record_payment("request_node", pool, sender, for_node, proof)
    credit(state, model.owner, for_owner)
    context.record_payment("request_owner", pool, model.owner, for_owner, proof)
    state.requests.put(
        request.id,
        replace(request, state="completed", output_sha256=message.output_sha256, completed_height=context.height),
    )
    state.models.put(model_key(model.model, model.number), replace(model, requests=model.requests + 1))
    earned = min(node.earned_utlk + for_node, MAX_AMOUNT_UTLK)
    state.nodes.put(sender, replace(node, energy_mj=node.energy_mj + message.energy_mj, earned_utlk=earned))
    context.emit("request_completed", request.id, node=sender, output=message.output_sha256.hex())


def refund_late_requests(context: Context) -> None:
    """Return the price of every request whose deadline has passed."""
    for request in context.state.requests.live():
        if context.height <= request.deadline_height:
            continue
        credit(context.state, request.sender, request.price_utlk)
        context.record_payment(
            "refund", f"escrow:{request.id}", request.sender, request.price_utlk, f"request:{request.id}"
        )
        context.state.requests.put(request.id, replace(request, state="refunded", completed_height=context.height))
        context.emit("request_refunded", request.id, sender=request.sender)
