"""Being there: register on the ledger once measured, then offer to the organization's scheduler, again and again."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec
from talkoo_api.ledger.v1 import state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2

from talkoo_agent.metrics import JAILED, OFFERED
from talkoo_agent.node import Node
from talkoo_agent.serving import Serving
from talkoo_agent.speed import speed_of
from talkoo_agent.standing import refusal_of
from talkoo_agent.trainer_messages import Measured
from talkoo_agent.wire import offer_of, registration_of
from talkoo_agent.work import Work
from talkoo_core.errors import NotFound, TalkooError
from talkoo_runtime.grpc_client import raise_from_rpc

log = logging.getLogger(__name__)

OFFER_TIMEOUT_S = 5.0
WITHDRAW_TIMEOUT_S = 2.0
FIRST_TTL_S = 5
LEAST_PAUSE_S = 0.5
RETRY_S = 1.0
NODE_REVIEW_S = 15.0
"""How old the agent's knowledge of its own node record may be: jail and stake change by others' transactions."""
SPEED_CHANGE = 0.1
"""A measured speed within this part of the registered one is not registered again."""
REGISTERED = (
    "name",
    "endpoint",
    "outbound_only",
    "hardware_class",
    "device",
    "memory_bytes",
    "price_utlk_per_gflop",
    "request_price_utlk",
    "power_mw",
    "power_source",
)
"""What is registered again as soon as it differs."""


async def register(node: Node) -> state_pb2.Node:
    """Measure and register, unless the ledger has it all already. Raises the errors of both."""
    measured = await speed_of(node.device, node.settings.duty, node.folder, node.cards.quietest.uuid)
    try:
        known = await node.ledger.node(node.id)
    except NotFound:
        await node.ledger.submit(registration_of(node.settings, node.device, measured, node.settings.stake_utlk))
        log.info("registered as %s with %s", node.id, node.device.description)
        return await node.ledger.node(node.id)
    if not _same(node, known, measured):
        # Stake is bonded once. What was slashed is for the owner to put back, not for the program.
        await node.ledger.submit(registration_of(node.settings, node.device, measured, 0))
        log.info("registered changes of %s", node.id)
        return await node.ledger.node(node.id)
    return known


def _same(node: Node, known: state_pb2.Node, measured: Measured) -> bool:
    wanted = registration_of(node.settings, node.device, measured, 0)
    if any(getattr(known, name) != getattr(wanted, name) for name in REGISTERED):
        return False
    return abs(known.speed_flops - wanted.speed_flops) <= SPEED_CHANGE * known.speed_flops


async def offer_forever(node: Node, work: Work, serving: Serving) -> None:
    """Register, then send the offer twice in each lifetime, and at once when shards come or go."""
    record = await register(node)
    node.spare.refill()
    read_at = time.monotonic()
    ttl_s = FIRST_TTL_S
    refused = ""
    while True:
        if time.monotonic() - read_at > NODE_REVIEW_S:
            record, read_at = await node.ledger.node(node.id), time.monotonic()
        JAILED.set(record.jailed)
        if _priced_anew(node):
            record = await register(node)
        refusal = refusal_of(node.orders, node.cards, record)
        draining = refusal.message if refusal is not None else ""
        offer = offer_of(node.settings, record, node.cards, work.running_tasks, serving.served_models, draining)
        node.standing.record = record
        reason = refusal.reason if refusal is not None else offer.state.capitalize()
        node.standing.set(offer.state, reason, offer.reason or "the node takes work")
        work.changed.clear()
        pause = max(ttl_s / 2, LEAST_PAUSE_S)
        try:
            ttl_s = await _send(node, offer)
            refused = ""
            OFFERED.set(1)
        except TalkooError as error:
            OFFERED.set(0)
            if refused != error.message:
                refused = error.message
                log.warning("the scheduler does not take the offer: %s", error)
            pause = RETRY_S
        try:
            await asyncio.wait_for(work.changed.wait(), pause)
        except TimeoutError:
            continue


def _priced_anew(node: Node) -> bool:
    """Take the price that the node's keeper gives. Without one, the last stays until the agent begins anew."""
    given = node.orders.price_utlk_per_gflop
    if not node.orders.HasField("price_utlk_per_gflop") or given == node.settings.price_utlk_per_gflop:
        return False
    log.info("the price is %d utlk per GFLOP from now on", given)
    node.settings = msgspec.structs.replace(node.settings, price_utlk_per_gflop=given)
    return True


async def withdraw(node: Node) -> None:
    """Say that nothing is offered any more. The scheduler forgets a silent node by itself, so this may fail."""
    try:
        await node.scheduler.Withdraw(scheduler_pb2.WithdrawRequest(node_id=node.id), timeout=WITHDRAW_TIMEOUT_S)
    except Exception as error:
        log.debug("the offer could not be withdrawn: %s", error)


async def _send(node: Node, offer: scheduler_pb2.Offer) -> int:
    import grpc

    try:
        response = await node.scheduler.Offer(scheduler_pb2.OfferRequest(offer=offer), timeout=OFFER_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise_from_rpc(error)
    return int(response.ttl_s) or FIRST_TTL_S
