"""Who answers a request: a table."""

from __future__ import annotations

import pytest
from talkoo_api.ledger.v1 import state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2
from talkoo_gateway.quotes import choose, model_key, parse_version

from talkoo_core.errors import InvalidInput, Unavailable

MODEL = state_pb2.ModelVersion(version="digits@1", request_price_utlk=100)


def node(name: str, price: int, jailed: bool = False) -> state_pb2.Node:
    return state_pb2.Node(id=f"tlk1{name}", name=name, request_price_utlk=price, jailed=jailed)


def offer(name: str, state: str = "ready", running: int = 0, served: tuple[str, ...] = ()) -> scheduler_pb2.Offer:
    return scheduler_pb2.Offer(
        node_id=f"tlk1{name}", name=name, state=state, running_tasks=["t"] * running, served_models=served
    )


CASES = [
    ([offer("a"), offer("b")], [node("a", 5), node("b", 4)], "b", 104),
    ([offer("a", running=2), offer("b")], [node("a", 5), node("b", 5)], "b", 105),
    ([offer("a"), offer("b", served=("digits@1",))], [node("a", 5), node("b", 5)], "b", 105),
    ([offer("a", state="busy"), offer("b")], [node("a", 1), node("b", 5)], "a", 101),
    ([offer("a"), offer("b")], [node("a", 1, jailed=True), node("b", 5)], "b", 105),
    ([offer("a", state="draining"), offer("b")], [node("a", 1), node("b", 5)], "b", 105),
    ([offer("a")], [node("a", 1), node("b", 0)], "a", 101),
]


@pytest.mark.parametrize(("offers", "nodes", "chosen", "price"), CASES)
def test_the_cheapest_that_may_and_can(
    offers: list[scheduler_pb2.Offer], nodes: list[state_pb2.Node], chosen: str, price: int
) -> None:
    quote = choose(MODEL, offers, {n.id: n for n in nodes}, "north")
    assert (quote.node_name, quote.price_utlk, quote.version) == (chosen, price, "digits@1")


def test_when_none_can_each_has_its_reason() -> None:
    offers = [offer("a"), offer("b", state="draining"), offer("c")]
    nodes = {n.id: n for n in (node("a", 1, jailed=True), node("b", 1))}
    with pytest.raises(Unavailable, match="a is jailed for forging; b is leaving; c is not registered on the ledger"):
        choose(MODEL, offers, nodes, "north")
    with pytest.raises(Unavailable, match="no node is connected"):
        choose(MODEL, [], nodes, "north")


@pytest.mark.parametrize("said_by", ["ledger", "offer"])
def test_a_node_that_only_dials_out_is_asked_by_its_own_organization_s_gateway(said_by: str) -> None:
    private = state_pb2.Node(id="tlk1s", name="s", organization="south", outbound_only=said_by == "ledger")
    nodes = {"tlk1s": private, "tlk1n": state_pb2.Node(id="tlk1n", name="n", organization="north")}
    nodes["tlk1n"].request_price_utlk = 5
    offers = [scheduler_pb2.Offer(node_id="tlk1s", name="s", outbound_only=said_by == "offer"), offer("n")]
    assert choose(MODEL, offers, nodes, "north").node_name == "n"
    assert choose(MODEL, offers, nodes, "south").node_name == "s"
    with pytest.raises(Unavailable, match="s only dials out; a gateway of south can ask it"):
        choose(MODEL, offers[:1], nodes, "north")


def test_versions_are_read_strictly() -> None:
    assert parse_version("digits@3") == ("digits", 3)
    assert parse_version("digits") == ("digits", None)
    assert model_key("digits", 3) == "digits@000003"
    for wrong in ("", "@1", "digits@", "digits@0", "digits@-1", "digits@1000000", "digits@one"):
        with pytest.raises(InvalidInput):
            parse_version(wrong)
