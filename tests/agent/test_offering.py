"""What an agent registers and offers, and when it registers again. STAND-INS: the ledger, and the measurement."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from talkoo_agent import offering
from talkoo_agent.devices import find_device
from talkoo_agent.lending import cards_for
from talkoo_agent.node import Node
from talkoo_agent.offering import REGISTERED, register
from talkoo_agent.settings import AgentSettings
from talkoo_agent.trainer_messages import Measured
from talkoo_agent.wire import offer_of
from talkoo_api.ledger.v1 import state_pb2, tx_pb2

from talkoo_core.errors import NotFound
from talkoo_core.signing import PrivateKey
from talkoo_runtime.keys import address_of

KEY = PrivateKey.from_seed(b"n" * 32)


class StandInLedger:
    """STAND-IN: takes every registration as it is."""

    def __init__(self) -> None:
        self.known: state_pb2.Node | None = None
        self.sent: list[tx_pb2.RegisterNode] = []

    async def node(self, node_id: str) -> state_pb2.Node:
        if self.known is None:
            raise NotFound("there is no such node")
        return self.known

    async def submit(self, message: tx_pb2.RegisterNode) -> None:
        self.sent.append(message)
        fields = {name: getattr(message, name) for name in (*REGISTERED, "organization", "speed_flops")}
        self.known = state_pb2.Node(id=address_of(KEY), stake_utlk=message.stake_utlk, **fields)


@pytest.fixture
def node(own_settings: AgentSettings, monkeypatch: pytest.MonkeyPatch) -> Node:
    async def measured(*_: Any) -> Measured:
        return Measured(speed_flops=10**9, hardware_class="cpu", memory_bytes=0, duty=1.0)

    monkeypatch.setattr(offering, "speed_of", measured)
    nothing: Any = None
    ledger: Any = StandInLedger()
    device, cards = find_device((), declared_memory_bytes=1 << 28), cards_for((), slots=1)
    return Node(
        address_of(KEY), KEY, own_settings, device, cards, ledger, scheduler=nothing, blobs=nothing, spare=nothing
    )


async def test_a_node_registers_once_and_again_only_when_something_changed(node: Node) -> None:
    ledger: Any = node.ledger
    await register(node)
    await register(node)
    assert [(sent.stake_utlk, sent.outbound_only) for sent in ledger.sent] == [(20, False)]
    for change in ({"outbound_only": True}, {"listen": "127.0.0.1:2"}, {"outbound_only": False}):
        node.settings = msgspec.structs.replace(node.settings, **change)
        record = await register(node)
        assert (record.outbound_only, record.endpoint) == (node.settings.outbound_only, node.settings.listen)
        await register(node)
    assert [sent.stake_utlk for sent in ledger.sent] == [20, 0, 0, 0], "stake is bonded once"


async def test_a_node_that_only_dials_out_says_so_in_its_offers(node: Node) -> None:
    record = await register(node)
    assert not offer_of(node.settings, record, node.cards, [], []).outbound_only
    node.settings = msgspec.structs.replace(node.settings, outbound_only=True)
    assert offer_of(node.settings, record, node.cards, [], []).outbound_only
