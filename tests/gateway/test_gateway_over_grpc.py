"""The gateway as the SDK meets it: real gRPC, real mutual TLS, stand-ins behind."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.ledger.v1 import service_pb2, state_pb2, tx_pb2

from talkoo.client_async import AsyncClient, translated
from talkoo.watching import watch
from talkoo_core.errors import (
    Conflict,
    Corrupt,
    InsufficientFunds,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from talkoo_runtime.keys import address_of
from talkoo_runtime.transactions import sign_transaction


async def test_ledger_calls_pass_through_with_their_errors(house: Any, client: AsyncClient) -> None:
    assert (await client.status()).chain_id == "chain-test"
    assert [account.label for account in await client.accounts()] != []
    assert (await client.account("bob")).balance_utlk == 5_000_000
    assert await client.genesis() == '{"chain_id":"chain-test"}'
    assert (await client.supply()).genesis_utlk == 105_000_000
    with pytest.raises(NotFound, match="there is no 'task-nowhere'") as caught:
        await client.ledger.task("task-nowhere")
    assert caught.value.code == "no_value"


async def test_a_transfer_is_signed_sent_and_final(house: Any, client: AsyncClient) -> None:
    result = await client.transfer("bob", 1_500_000)
    assert result.kind == "transfer"
    assert (await client.account("bob")).balance_utlk == 6_500_000
    with pytest.raises(InsufficientFunds, match="holds too little"):
        await client.transfer("bob", 10**12)
    with pytest.raises(InvalidInput, match="more than nothing"):
        await client.transfer("bob", 0)
    with pytest.raises(NotFound, match="whole label"):
        await client.transfer((await client.account("bob")).address[:10], 1)


async def test_a_replayed_transaction_is_a_conflict(house: Any, client: AsyncClient) -> None:
    signed = sign_transaction(client.key, "chain-test", 0, 1000, tx_pb2.Transfer(to=client.address, amount_utlk=1))
    await client.stub.Broadcast(service_pb2.BroadcastRequest(tx=signed))
    with pytest.raises(Conflict, match="the nonce is 0, not 1"):
        await translated(client.stub.Broadcast(service_pb2.BroadcastRequest(tx=signed)))


@pytest.mark.parametrize("role", ["agent", "ledger", "scheduler", "validator", "etcd"])
async def test_only_users_supervisors_and_gateways_are_served(house: Any, role: str) -> None:
    async with AsyncClient(profile=house.profile(name="stranger", role=role)) as stranger:
        with pytest.raises(PermissionDenied, match=f"{role} stranger of north may not call this"):
            await stranger.status()
        # Agents and validators of members whose cluster has no store ask for blobs, and for nothing else.
        with pytest.raises(NotFound if role in ("agent", "validator") else PermissionDenied):
            await stranger.blob("0" * 64)


async def test_blobs_go_up_and_down_and_are_checked(house: Any, client: AsyncClient) -> None:
    content = bytes(range(256)) * 10_000
    sha256 = await client.put_blob(content)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert await client.blob(sha256) == content
    assert await client.put_blob(b"") == hashlib.sha256(b"").hexdigest()
    with pytest.raises(NotFound):
        await client.blob("0" * 64)
    with pytest.raises(InvalidInput, match="not a SHA-256"):
        await client.blob("../../etc/passwd")
    stored = next(path for path in (house.folder / "blobs").rglob(sha256))
    stored.write_bytes(b"something else")
    with pytest.raises(Corrupt):
        await client.blob(sha256)


async def test_blocks_come_raw_and_as_events(house: Any, client: AsyncClient) -> None:
    await house.ledger.decide()
    await house.ledger.decide()
    assert [block.height async for block in client.blocks(1)] == [1, 2]
    assert [block.height async for block in client.block_events(1, 2)] == [1, 2]


async def test_offers_reasons_and_audits_come_from_their_services(house: Any, client: AsyncClient) -> None:
    house.add_model()
    assert [offer.name for offer in (await client.offers()).offers] == ["north-1", "north-2"]
    assert (await client.explain("task-1")).summary == "waits: 1 of 3 nodes fit"
    assert (await client.audits())[0].state == "revealed"


async def test_a_paid_request_is_answered_and_its_signature_checked(house: Any, client: AsyncClient) -> None:
    house.add_model()
    answer = await client.request("digits", [[1, 2, 3]])
    assert answer.version == "digits@2"
    assert (answer.node_name, answer.price_utlk) == ("north-1", 15_000)
    assert answer.outputs == [len(b"[[1,2,3]]")]
    assert (await client.model_request(answer.request_id)).price_utlk == 15_000
    house.agents[0].forge = True
    with pytest.raises(Corrupt, match="the signature of north-1 under the answer is wrong"):
        await client.request("digits@1", [[1]])
    with pytest.raises(InsufficientFunds, match="more than the"):
        await client.request("digits", [[1]], most_utlk=14_999)
    with pytest.raises(NotFound, match="no model 'wine'"):
        await client.request("wine", [[1]])


async def test_a_model_that_nobody_serves_says_why(house: Any, client: AsyncClient) -> None:
    house.add_model()
    house.ledger.state["nodes"][address_of(house.agents[0].key)].jailed = True
    house.scheduler.offers = house.scheduler.offers[:1]
    with pytest.raises(Unavailable, match="no node can answer for digits@2 now: north-1 is jailed for forging"):
        await client.quote("digits")


async def test_logs_of_several_nodes_are_in_order_of_time(house: Any, client: AsyncClient) -> None:
    task_id = house.add_task(nodes=(0, 1))
    await house.agents[0].say("first", 10)
    await house.agents[1].say("second", 20)
    await house.agents[0].say("third", 30)
    lines = [(line.node, line.text) async for line in client.logs(task_id)]
    assert lines == [("north-1", "first"), ("north-2", "second"), ("north-1", "third")]


async def test_followed_logs_move_on_with_a_new_placement_and_end_with_the_task(
    house: Any, client: AsyncClient
) -> None:
    task_id = house.add_task(nodes=(0,))
    await house.agents[0].say("on the first node", 10)
    seen: list[str] = []

    async def read() -> None:
        async for line in client.logs(task_id, follow=True):
            seen.append(line.text)

    reader = asyncio.create_task(read())
    await until(lambda: "on the first node" in seen)
    task = house.ledger.state["tasks"][task_id]
    task.attempt = 2
    task.shards[0].node_id = address_of(house.agents[1].key)
    await house.agents[1].say("on the second node", 20)
    await house.ledger.decide(service_pb2.Event(type="task_placed", subject=task_id))
    await until(lambda: "on the second node" in seen)
    task.phase = state_pb2.TASK_PHASE_COMPLETED
    await house.ledger.decide(service_pb2.Event(type="task_completed", subject=task_id))
    await asyncio.wait_for(reader, 15)
    assert seen == ["on the first node", "on the second node"]


async def test_a_lost_node_is_said_once_and_read_again_when_it_is_back(house: Any, client: AsyncClient) -> None:
    task_id = house.add_task(nodes=(0,))
    node = house.ledger.state["nodes"][address_of(house.agents[0].key)]
    good, node.endpoint = node.endpoint, "127.0.0.1:1"
    seen: list[str] = []

    async def read() -> None:
        async for line in client.logs(task_id, follow=True):
            seen.append(line.text)

    reader = asyncio.create_task(read())
    await until(lambda: any("cannot be reached" in text for text in seen))
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    node.endpoint = good
    await house.agents[0].say("back", 10)
    assert [line.text async for line in client.logs(task_id)] == ["back"]


async def test_a_foreign_node_that_only_dials_out_is_said_to_be_so_and_holds_nothing_up(
    house: Any, client: AsyncClient
) -> None:
    task_id = house.add_task(nodes=(0, 1))
    private = house.ledger.state["nodes"][address_of(house.agents[1].key)]
    private.organization, private.outbound_only = "south", True
    await house.agents[0].say("here", 10)
    await house.agents[1].say("nobody hears this", 20)
    lines = [(line.node, line.text) async for line in client.logs(task_id)]
    assert lines == [
        ("north-2", "(cannot be reached: north-2 only dials out; a gateway of south can ask it)"),
        ("north-1", "here"),
    ]
    seen: list[str] = []

    async def read() -> None:
        async for line in client.logs(task_id, follow=True):
            seen.append(line.text)

    reader = asyncio.create_task(read())
    await until(lambda: len(seen) == 2)
    await house.agents[0].say("and on", 30)
    await until(lambda: seen[-1] == "and on")
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await house.agents[0].report(5, 10)
    async with asyncio.timeout(15):
        assert (await anext(client.progress(task_id))).step == 5


async def test_an_own_node_that_only_dials_out_is_asked_as_any_other(house: Any, client: AsyncClient) -> None:
    task_id = house.add_task(nodes=(1,))
    house.ledger.state["nodes"][address_of(house.agents[1].key)].outbound_only = True
    await house.agents[1].say("at home", 20)
    assert [line.text async for line in client.logs(task_id)] == ["at home"]


async def test_a_request_paid_to_a_foreign_node_that_only_dials_out_is_not_tried_here(
    house: Any, client: AsyncClient
) -> None:
    """Quoted by a gateway of the node's own organization, or before the node said so."""
    house.add_model()
    private = house.ledger.state["nodes"][address_of(house.agents[0].key)]
    private.organization, private.outbound_only = "south", True
    assert (await client.quote("digits")).node_name == "north-2"
    house.ledger.state["requests"]["req-1"] = state_pb2.ModelRequest(id="req-1", node_id=private.id, state="open")
    with pytest.raises(Conflict, match="a gateway of south can ask it, this one of north cannot") as caught:
        await translated(client.stub.Infer(agent_pb2.InferRequest(request_id="req-1")))
    assert caught.value.code == "outbound_only"


async def test_a_watch_adds_up_events_and_progress(house: Any, client: AsyncClient) -> None:
    task_id = house.add_task(nodes=(0,))
    task = house.ledger.state["tasks"][task_id]
    await house.agents[0].report(5, 10, loss=1.25)
    sights = []

    async def look() -> None:
        async for sight in watch(client, task_id):
            sights.append(sight)

    looker = asyncio.create_task(look())
    await until(lambda: any(sight.progress and sight.progress.step == 5 for sight in sights))
    task.next_segment, task.accepted_segments = 1, 1
    await house.ledger.decide(service_pb2.Event(type="audit_opened", subject=task_id))
    await until(lambda: sights[-1].audited == 1)
    task.phase, task.model_version = state_pb2.TASK_PHASE_COMPLETED, "digits@1"
    await house.ledger.decide(service_pb2.Event(type="task_completed", subject=task_id))
    await asyncio.wait_for(looker, 15)
    last = sights[-1]
    assert (last.committed, last.audited, last.accepted, last.segments) == (1, 1, 1, 3)
    assert last.task.model_version == "digits@1"


async def until(holds: Any, deadline_s: float = 15.0) -> None:
    """Poll a condition until it holds; fails at the deadline."""
    async with asyncio.timeout(deadline_s):
        while not holds():
            await asyncio.sleep(0.02)
