"""How the node stands: why it offers itself or does not, for people and for Kubernetes."""

from __future__ import annotations

from dataclasses import dataclass

from talkoo_api.agent.v1 import node_pb2
from talkoo_api.ledger.v1 import state_pb2

from talkoo_agent.cards import Cards


@dataclass(slots=True)
class Standing:
    """`state` is measuring, ready, busy, draining or off; `reason` is one word in CamelCase, `message` for a person."""

    state: str = "measuring"
    reason: str = "Measuring"
    message: str = "the agent has begun and measures its device"
    record: state_pb2.Node | None = None
    """The node on the ledger, some seconds old at most."""

    def set(self, state: str, reason: str, message: str) -> None:
        self.state, self.reason, self.message = state, reason, message


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no new work is taken."""

    reason: str
    message: str


def refusal_of(orders: node_pb2.NodeOrders, cards: Cards, record: state_pb2.Node) -> Refusal | None:
    """The first that holds; None when work is welcome."""
    if record.jailed:
        return Refusal("Jailed", f"jailed until block {record.jailed_until_height} for forging")
    if cards.all_faulty:
        return Refusal("GPUFault", f"no card is without a fault: {cards.faults}; reset them and restart the agent")
    if orders.drain:
        return Refusal("Draining", orders.drain)
    return None
