"""Two scheduler processes with a real etcd over mutual TLS.

STAND-IN: one process decides the ledger's blocks (the production application, no consensus); tests/e2e has the real
nodes.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2
from talkoo_ledger.records import TaskPhase

from talkoo_core.errors import TalkooError
from talkoo_runtime.grpc_client import error_from_rpc
from talkoo_sim.ledger_chain import address
from talkoo_sim.scheduler_town import GANG, Town, beating, offer_of, offers, told, until


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    town = Town(tmp_path)
    town.chain.sim.register(*GANG.values())
    try:
        town.start_etcd()
        for organization in GANG:
            await town.start_ledger(organization)
            town.start_scheduler(organization)
        yield town
    finally:
        await town.stop()


async def refused(call: Awaitable[Any]) -> TalkooError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_rpc(caught.value)


async def test_offers_placements_and_a_killed_leader(town: Town) -> None:
    readers = {name: town.stub(name, "supervisor", f"{name}-supervisor") for name in GANG}

    async def leads() -> bool:
        return bool((await offers(readers["north"])).leader) and bool((await offers(readers["east"])).leader)

    await until(leads, "a leader")
    sim = town.chain.sim
    first = sim.create()

    async def waits() -> bool:
        asked = scheduler_pb2.ExplainRequest(task_id=first)
        return "0 fit" in (await readers["east"].Explain(asked, timeout=5)).summary

    await until(waits, "a reason to wait")
    stranger = town.stub("north", "agent", "north-9")
    wrong = scheduler_pb2.OfferRequest(offer=offer_of("north"))
    assert (await refused(stranger.Offer(wrong, timeout=5))).code == "wrong_node"
    foreign = town.stub("east", "agent", "east-9", "north")
    await refused(foreign.Offer(wrong, timeout=5))

    beats = {name: asyncio.create_task(town.offer(name)) for name in GANG}
    try:

        async def placed(task_id: str) -> bool:
            return sim.task(task_id).phase is TaskPhase.RUNNING

        await until(lambda: placed(first), "the placement")
        assert sim.task(first).attempt == 1
        withdrawal = scheduler_pb2.WithdrawRequest(node_id=address("north-1"))
        assert (await refused(stranger.Withdraw(withdrawal, timeout=5))).code == "wrong_node"

        leader = (await offers(readers["east"])).leader
        town.kill(f"{leader}-scheduler")
        other = next(name for name in GANG if name != leader)

        async def another_leads() -> bool:
            return (await offers(readers[other])).leader == other

        await until(another_leads, "the other leader")
        town.start_scheduler(leader)
        second = sim.create()
        await until(lambda: placed(second), "a placement by the next leader")

        town.kill("etcd")
        third = sim.create()
        town.start_etcd()
        await until(lambda: placed(third), "a placement after etcd came back")
        assert sim.task(third).attempt == 1
    finally:
        for beat in beats.values():
            beat.cancel()
        await asyncio.gather(*beats.values(), return_exceptions=True)

    async def gone() -> bool:
        seen = await offers(readers[other])
        return bool(seen.leader) and not seen.offers

    await until(gone, "offers without a heart-beat to run out")


async def test_a_slot_is_given_once_although_its_offer_never_says_that_it_is_taken(town: Town) -> None:
    sim, reader = town.chain.sim, town.stub("north", "supervisor", "north-supervisor")
    async with beating(town, slots=1):
        first, second = sim.create(name="first"), sim.create(name="second", model_name="other")

        async def one_runs_and_one_waits() -> bool:
            tasks = [sim.task(first), sim.task(second)]
            running = [task for task in tasks if task.phase is TaskPhase.RUNNING]
            waiting = next((task for task in tasks if task.phase is TaskPhase.PENDING), None)
            assert len(running) < 2, "a slot was given twice"
            if not running or waiting is None:
                return False
            return f"is busy (runs {running[0].spec.name})" in await told(reader, waiting.id)

        await until(one_runs_and_one_waits, "one task to wait for the other's slot")
        runs, waits = (first, second) if sim.task(first).phase is TaskPhase.RUNNING else (second, first)
        sim.send("alice", tx_pb2.CancelTask(task_id=runs))

        async def placed() -> bool:
            return sim.task(waits).phase is TaskPhase.RUNNING

        await until(placed, "the slot to be given to the task that waited")


async def test_a_dead_node_s_task_stands_still_and_is_then_placed_on_another(town: Town) -> None:
    sim, reader = town.chain.sim, town.stub("north", "supervisor", "north-supervisor")
    async with beating(town, slots=1) as beats:

        async def both_offer() -> bool:
            return len((await offers(reader)).offers) == len(GANG)

        await until(both_offer, "both offers")
        task_id = sim.create(min_nodes=1, max_nodes=1)

        async def placed(attempt: int) -> bool:
            return sim.task(task_id).attempt == attempt

        await until(lambda: placed(1), "the first placement")
        dead = next(o for o, name in GANG.items() if address(name) == sim.task(task_id).shards[0].node_id)
        beats[dead].cancel()

        async def one_offer() -> bool:
            return [offer.organization for offer in (await offers(reader)).offers] == [o for o in GANG if o != dead]

        await until(one_offer, "the dead node's offer to run out")
        assert sim.task(task_id).attempt == 1
        sim.skip(sim.state.parameters["params"].stall_blocks)
        await until(lambda: placed(2), "the second placement")
        assert sim.task(task_id).shards[0].node_id != address(GANG[dead])


async def test_a_refusal_is_told_and_tried_again_after_growing_pauses(town: Town) -> None:
    """Each try that reaches a block costs its fee: two a second for ever would empty the scheduler's account."""
    sim, reader = town.chain.sim, town.stub("north", "supervisor", "north-supervisor")
    rich = {name: sim.balance(f"{name}-scheduler") for name in GANG}
    for name, balance in rich.items():
        sim.send(f"{name}-scheduler", tx_pb2.Transfer(to=address("bob"), amount_utlk=balance - 1_000))
    async with beating(town, slots=1):
        task_id = sim.create()

        async def refused_once() -> bool:
            return "the ledger refused the placement" in await told(reader, task_id)

        await until(refused_once, "the refusal as the reason")
        begun, tried = time.monotonic(), town.chain.broadcasts

        async def tried_twice_more() -> bool:
            return town.chain.broadcasts >= tried + 2

        await until(tried_twice_more, "two more tries")
        assert time.monotonic() - begun > 2, "the pauses do not grow"
        for name in GANG:
            sim.send("bob", tx_pb2.Transfer(to=address(f"{name}-scheduler"), amount_utlk=1_000_000))

        async def placed() -> bool:
            return sim.task(task_id).phase is TaskPhase.RUNNING

        await until(placed, "the placement once the fee can be paid")


async def test_an_agent_speaks_for_its_own_node_even_where_nobody_offers_it(town: Town) -> None:
    agent, reader = town.stub("north", "agent", "north-1"), town.stub("north", "supervisor", "north-supervisor")

    async def ready() -> bool:
        return bool((await offers(reader)).leader)

    await until(ready, "a leader")
    borrowed = offer_of("north")
    borrowed.node_id = address("east-1")
    assert (await refused(agent.Offer(scheduler_pb2.OfferRequest(offer=borrowed), timeout=5))).code == "wrong_node"
    renamed = offer_of("north")
    renamed.name = "north-2"
    assert (await refused(agent.Offer(scheduler_pb2.OfferRequest(offer=renamed), timeout=5))).code == "bad_offer"
    report = scheduler_pb2.ReportShardRequest(task_id="task-1", node_id=address("east-1"), kind="node_lost")
    assert (await refused(agent.ReportShard(report, timeout=5))).code == "wrong_node"
    large = offer_of("north")
    large.reason = "x" * 20_000
    assert (await refused(agent.Offer(scheduler_pb2.OfferRequest(offer=large), timeout=5))).family == "exhausted"


async def test_a_leader_that_stood_still_for_longer_than_its_term_lives_on_as_a_follower(town: Town) -> None:
    readers = {name: town.stub(name, "supervisor", f"{name}-supervisor") for name in GANG}

    async def leads(by: str, who: set[str]) -> bool:
        return (await offers(readers[by])).leader in who

    await until(lambda: leads("north", set(GANG)), "a leader")
    first = (await offers(readers["north"])).leader
    other = next(name for name in GANG if name != first)
    await until(lambda: leads(other, {first}), "the other scheduler to see the leader")
    stopped = town.running[f"{first}-scheduler"]
    stopped.send_signal(signal.SIGSTOP)
    try:
        await until(lambda: leads(other, {other}), "the other leader")
    finally:
        stopped.send_signal(signal.SIGCONT)
    await until(lambda: leads(first, {other}), "the first to follow")
    log = town.folder / f"{first}-scheduler.log"

    async def gave_up_its_term() -> bool:
        return "leads no more" in log.read_text() or stopped.poll() is not None

    await until(gave_up_its_term, "the first to notice that its term is over")
    town.kill(f"{other}-scheduler")
    await until(lambda: leads(first, {first}), "the first to lead again")
    assert stopped.poll() is None, log.read_text()[-2000:]


async def test_a_leader_without_its_ledger_node_gives_way_to_one_that_has_it(town: Town) -> None:
    sim, readers = town.chain.sim, {name: town.stub(name, "supervisor", f"{name}-supervisor") for name in GANG}
    async with beating(town, slots=1):

        async def all_is_there() -> bool:
            seen = [await offers(reader) for reader in readers.values()]
            return all(each.leader and len(each.offers) == len(GANG) for each in seen)

        await until(all_is_there, "a leader and both offers")
        first = (await offers(readers["north"])).leader
        await town.ledgers[first].stop(0)
        task_id = sim.create()

        async def placed() -> bool:
            return sim.task(task_id).phase is TaskPhase.RUNNING

        await until(placed, "the placement by the other organization's scheduler")
        assert (await offers(readers[first])).leader != first
        asked = readers[first].Explain(scheduler_pb2.ExplainRequest(task_id=task_id), timeout=20)
        assert (await refused(asked)).family == "unavailable"
        assert town.running[f"{first}-scheduler"].poll() is None
