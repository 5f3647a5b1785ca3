"""Two schedulers that each have an etcd of their own, one sharing what its nodes offer with the other.

STAND-IN: the ledger, as in test_service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from talkoo_api.scheduler.v1 import scheduler_pb2
from talkoo_ledger.records import TaskPhase
from talkoo_scheduler.service import MAX_SHARED_OFFERS

from talkoo_core.errors import TalkooError
from talkoo_runtime.grpc_client import error_from_rpc
from talkoo_sim.ledger_chain import address
from talkoo_sim.scheduler_town import GANG, Town, beating, offer_of, offers, told, until


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    """East dials out only: its scheduler tells north's what its nodes offer, and hears nothing of north's."""
    town = Town(tmp_path, {name: f"etcd-{name}" for name in GANG})
    town.chain.sim.register(*GANG.values())
    try:
        for organization in GANG:
            town.start_etcd(f"etcd-{organization}")
            await town.start_ledger(organization)
        town.start_scheduler("north")
        town.start_scheduler("east", share_with=["north"])
        yield town
    finally:
        await town.stop()


def names(found: scheduler_pb2.ListOffersResponse) -> list[str]:
    return [offer.name for offer in found.offers]


async def refused(call: Awaitable[Any]) -> TalkooError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_rpc(caught.value)


async def test_the_cluster_that_is_told_places_on_nodes_of_both(town: Town) -> None:
    sim = town.chain.sim
    north, east = (town.stub(name, "supervisor", f"{name}-supervisor") for name in GANG)
    async with beating(town, slots=1, outbound_only=["east"]) as beats:

        async def both_are_known() -> bool:
            return names(await offers(north)) == ["east-1", "north-1"]

        await until(both_are_known, "east's offer at north's scheduler")
        seen = next(offer for offer in (await offers(north)).offers if offer.name == "east-1")
        assert seen.outbound_only
        assert names(await offers(east)) == ["east-1"], "offers go one way"
        beats["north"].cancel()

        async def one_is_known() -> bool:
            return names(await offers(north)) == ["east-1"]

        await until(one_is_known, "north's own offer to run out")
        task_id = sim.create(min_nodes=2)

        async def east_says_what_it_knows() -> bool:
            said = await told(east, task_id)
            return "north-1 does not offer itself here" in said and "knows more and may place it" in said

        await until(east_says_what_it_knows, "the word of a leader that knows one node")
        assert "knows more" not in await told(north, task_id)
        beats["again"] = asyncio.create_task(town.offer("north", 1))

        async def placed() -> bool:
            return sim.task(task_id).phase is TaskPhase.RUNNING

        await until(placed, "the placement over both clusters")
        by_rank = [shard.node_id for shard in sim.task(task_id).shards]
        assert by_rank == [address("north-1"), address("east-1")], "rank 0 is where the other can dial"
        assert "runs: attempt 1" in await told(east, task_id)


async def test_what_goes_away_there_goes_away_here_and_comes_back(town: Town) -> None:
    north = town.stub("north", "supervisor", "north-supervisor")
    agent = town.stub("east", "agent", "east-1")

    async def known() -> bool:
        return names(await offers(north)) == ["east-1"]

    async def unknown() -> bool:
        found = await offers(north)
        return bool(found.leader) and not found.offers

    beat = asyncio.create_task(town.offer("east"))
    await until(known, "the offer")
    beat.cancel()
    await asyncio.gather(beat, return_exceptions=True)
    await agent.Withdraw(scheduler_pb2.WithdrawRequest(node_id=address("east-1")), timeout=5)
    await until(unknown, "the withdrawal to be heard")

    beat = asyncio.create_task(town.offer("east"))
    await until(known, "the offer again")
    town.kill("east-scheduler")  # as a link that was cut
    await until(unknown, "offers of a cluster that is silent to run out")
    town.start_scheduler("east", share_with=["north"])
    await until(known, "the offer from the scheduler that is back")
    log = town.folder / "east-scheduler.log"

    async def lost() -> bool:
        return "offers cannot be shared with" in log.read_text().rpartition("offers are shared with")[2]

    async def said_three_times() -> bool:
        return log.read_text().count("offers are shared with") == 3

    town.kill("north-scheduler")
    await until(lost, "the link to be missed")
    town.start_scheduler("north")
    await until(said_three_times, "one word for each link that came to stand")
    await until(known, "the offer at the scheduler that was away")
    beat.cancel()
    await asyncio.gather(beat, return_exceptions=True)


async def test_an_organization_shares_its_own_nodes_and_no_more_than_a_bound(town: Town) -> None:
    at_north = town.stub("east", "scheduler", "east-scheduler", "north")
    own = town.stub("north", "scheduler", "north-scheduler")
    agent = town.stub("east", "agent", "east-1", "north")
    reader = town.stub("north", "supervisor", "north-supervisor")

    async def ready() -> bool:
        return bool((await offers(reader)).leader)

    await until(ready, "a leader")

    async def refusal(stub: Any, *shared: scheduler_pb2.Offer) -> str:
        return (await refused(stub.ShareOffers(scheduler_pb2.ShareOffersRequest(offers=shared), timeout=10))).code

    assert await refusal(agent, offer_of("east")) == "role"
    assert await refusal(own, offer_of("north")) == "own_offers"
    assert await refusal(at_north, offer_of("north")) == "bad_offer"
    borrowed = offer_of("north")
    borrowed.organization = "east"
    assert await refusal(at_north, borrowed) == "wrong_node"
    assert await refusal(at_north, offer_of("east", name="east-2")) == "wrong_node"
    assert await refusal(at_north, offer_of("east", node_id=address("alice"))) == "not_found"
    assert await refusal(at_north, offer_of("east"), offer_of("east")) == "bad_offer"
    assert await refusal(at_north, *[offer_of("east")] * (MAX_SHARED_OFFERS + 1)) == "too_many_offers"
    assert await refusal(at_north, offer_of("east", reason="x" * 20_000)) == "exhausted"
    assert await refusal(at_north, offer_of("east", reason="x" * 2_000_000)) == "too_many_offers"


async def test_two_leaders_that_place_the_same_task_at_once_leave_one_placement(town: Town) -> None:
    """Each leads its own cluster, has a node that fits, and is shown the task at the same moment."""
    sim = town.chain.sim
    stubs = {name: town.stub(name, "supervisor", f"{name}-supervisor") for name in GANG}
    town.chain.gate = asyncio.Barrier(len(GANG))
    async with beating(town, slots=8):

        async def each_leads_and_knows_its_node() -> bool:
            found = {name: await offers(stub) for name, stub in stubs.items()}
            return all(one.leader == name and GANG[name] in names(one) for name, one in found.items())

        await until(each_leads_and_knows_its_node, "two leaders with an offer each")
        task_id = sim.create(min_nodes=1, max_nodes=1)

        async def placed() -> bool:
            return sim.task(task_id).phase is TaskPhase.RUNNING

        await until(placed, "the placement")
        assert town.chain.refused == ["wrong_attempt"], "both were sent, one was refused"
        assert len(sim.events("task_placed")) == 1
        summaries = {name: await told(stub, task_id) for name, stub in stubs.items()}
        assert all(summary.startswith("runs: attempt 1") for summary in summaries.values()), summaries
        town.chain.gate = None
        second = sim.create(min_nodes=1, max_nodes=1, model_name="other")

        async def second_placed() -> bool:
            return sim.task(second).phase is TaskPhase.RUNNING

        await until(second_placed, "both leaders to go on")
        assert sim.task(task_id).attempt == 1
        assert all(town.running[f"{name}-scheduler"].poll() is None for name in GANG)
