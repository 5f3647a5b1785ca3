"""Which node serves a request to a model, and for how much. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from talkoo_api.gateway.v1 import gateway_pb2
from talkoo_api.ledger.v1 import state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2

from talkoo_core.errors import InvalidInput, Unavailable

DRAINING = "draining"
MAX_REASONS = 6


def parse_version(text: str) -> tuple[str, int | None]:
    """`digits@3` to ("digits", 3); `digits` to ("digits", None): its newest. Raises InvalidInput."""
    model, at, number = text.partition("@")
    if not model or (at and (not number.isdigit() or not 1 <= int(number) <= 999_999)):
        raise InvalidInput(f"{text!r} is not a model; write a version like digits@1, or digits for its newest")
    return model, int(number) if at else None


def model_key(model: str, number: int) -> str:
    """The key of a version in the ledger's module `models`."""
    return f"{model}@{number:06d}"


def can_be_dialled(node: state_pb2.Node, by: str) -> bool:
    """Whether this organization's services can ask the node's agent."""
    return not node.outbound_only or node.organization == by


def only_dials_out(node: state_pb2.Node) -> str:
    return f"{node.name} only dials out; a gateway of {node.organization} can ask it"


def choose(
    model: state_pb2.ModelVersion,
    offers: Sequence[scheduler_pb2.Offer],
    nodes: Mapping[str, state_pb2.Node],
    organization: str,
) -> gateway_pb2.Quote:
    """The cheapest node that is here and in good standing; among equals the least busy, then one that has it loaded.

    `organization`: the gateway's, which asks the node. The price is the node's, as registered on the ledger, plus the
    model owner's. Raises Unavailable with a reason for each node that was passed over.
    """
    fitting: list[tuple[int, int, int, str]] = []
    reasons: list[str] = []
    for offer in offers:
        node = nodes.get(offer.node_id)
        if node is None:
            reasons.append(f"{offer.name} is not registered on the ledger")
        elif node.jailed:
            reasons.append(f"{offer.name} is jailed for forging")
        elif not can_be_dialled(node, organization) or (offer.outbound_only and node.organization != organization):
            reasons.append(only_dials_out(node))
        elif offer.state == DRAINING:
            reasons.append(f"{offer.name} is leaving{': ' + offer.reason if offer.reason else ''}")
        else:
            loaded = 0 if model.version in offer.served_models else 1
            fitting.append((node.request_price_utlk, len(offer.running_tasks), loaded, node.id))
    if not fitting:
        why = "; ".join(reasons[:MAX_REASONS]) or "no node is connected"
        raise Unavailable(f"no node can answer for {model.version} now: {why}", code="no_server")
    price, _, _, node_id = min(fitting)
    return gateway_pb2.Quote(
        version=model.version,
        node_id=node_id,
        node_name=nodes[node_id].name,
        price_utlk=price + model.request_price_utlk,
    )
