"""Decisions that are shared or remembered are those that each task would get if it were looked at alone and anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2
from talkoo_scheduler.market import Decisions, Demands, Market, Waits, market_of
from talkoo_scheduler.policy import Candidate, Decision, Rules, decide, queue_order
from talkoo_scheduler.view import candidates_for, demand_of, needs_placement, running_on, shards_by_owner, stake_in_use

PENDING, RUNNING, VERIFYING = (
    state_pb2.TASK_PHASE_PENDING,
    state_pb2.TASK_PHASE_RUNNING,
    state_pb2.TASK_PHASE_VERIFYING,
)
RULES, STALL_BLOCKS = Rules(slash_ppm=500_000, audit_floor_ppm=50_000, min_node_stake_utlk=100), 10
NODES, TASKS = ("n1", "n2", "n3"), ("t1", "t2", "t3", "t4", "t5")
World = tuple[list[Any], dict[str, Any], list[Any], dict[str, int], int]


def alone(task: Any, world: World) -> tuple[Decision, list[Candidate]]:
    """As every task was decided on before decisions were shared."""
    nodes, offers, live, passed_over, height = world
    used = stake_in_use(live, task.id, RULES)
    running = running_on(t for t in live if not needs_placement(t, height, STALL_BLOCKS))
    candidates = candidates_for(task, nodes, offers, used, running, passed_over)
    demand = demand_of(task, shards_by_owner(live))
    return decide(demand, candidates, RULES, height), candidates


def market(world: World) -> Market:
    nodes, offers, live, passed_over, height = world
    return market_of(nodes, offers, live, passed_over, RULES, height, STALL_BLOCKS)


def waiting(live: Iterable[Any], height: int) -> list[Any]:
    return [task for task in live if needs_placement(task, height, STALL_BLOCKS)]


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Any:
    return state_pb2.Node(
        id=name,
        name=f"name-{name}",
        memory_bytes=100,
        speed_flops=draw(st.sampled_from([5, 50])),
        price_utlk_per_gflop=draw(st.sampled_from([1, 7])),
        stake_utlk=draw(st.sampled_from([50, 10**6])),
        jailed=draw(st.booleans()) and draw(st.booleans()),
        jailed_until_height=draw(st.integers(10, 30)),
    )


@st.composite
def offers(draw: st.DrawFn, name: str) -> Any:
    return scheduler_pb2.Offer(
        node_id=name,
        name=f"name-{name}",
        state=draw(st.sampled_from(["ready", "ready", "busy", "draining"])),
        reason="because",
        running_tasks=draw(st.lists(st.sampled_from(TASKS), max_size=2, unique=True)),
        free_memory_bytes=draw(st.sampled_from([10, 100])),
        speed_flops=draw(st.sampled_from([5, 50])),
        slots=draw(st.integers(0, 2)),
    )


@st.composite
def tasks(draw: st.DrawFn, name: str) -> Any:
    phase = draw(st.sampled_from([PENDING, PENDING, PENDING, RUNNING, VERIFYING]))
    on = draw(st.lists(st.sampled_from(NODES), max_size=2, unique=True)) if phase != PENDING else []
    spec = tx_pb2.TaskSpec(
        name=f"name-{name}",
        steps=30,
        steps_per_segment=10,
        global_batch=8,
        min_nodes=1,
        max_nodes=2,
        memory_bytes=draw(st.sampled_from([10, 50])),  # else they ask for the same: that is what is shared
        price_utlk_per_gflop=9,
        flops_per_sample=10,
    )
    shards = [tx_pb2.Shard(node_id=node, rank=rank, samples=4, price_utlk_per_gflop=1) for rank, node in enumerate(on)]
    return state_pb2.Task(
        id=name,
        owner=draw(st.sampled_from(["alice", "alice", "bob"])),
        spec=spec,
        phase=phase,
        shards=shards,
        created_height=draw(st.integers(1, 3)),
        last_progress_height=draw(st.integers(1, 25)),
        banned_nodes=["n1"] if draw(st.integers(0, 4)) == 0 else [],
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    there = draw(st.lists(st.sampled_from(NODES), unique=True))
    live = draw(st.lists(st.sampled_from(TASKS), unique=True))
    return (
        [draw(nodes(name)) for name in there],
        {name: draw(offers(name)) for name in there if draw(st.booleans())},
        [draw(tasks(name)) for name in live],
        {name: draw(st.integers(0, 4)) for name in there if draw(st.booleans())},
        draw(st.integers(5, 30)),
    )


def changed(world: World, other: World, parts: Sequence[bool]) -> World:
    """Some parts of the world as they are in the other one: most stay as they were."""
    mixed = [theirs if change else ours for ours, theirs, change in zip(world, other, parts, strict=True)]
    return (mixed[0], mixed[1], mixed[2], mixed[3], mixed[4])  # type: ignore[return-value]


@settings(max_examples=60)
@given(worlds())
def test_a_shared_decision_is_the_one_that_each_task_gets_alone(world: World) -> None:
    live, height = world[2], world[4]
    decisions, held = Decisions(market(world)), shards_by_owner(live)
    for task in waiting(live, height):
        assert decisions.about(task, demand_of(task, held)) == alone(task, world)


@settings(max_examples=60)
@given(worlds(), st.lists(st.tuples(worlds(), st.tuples(*[st.sampled_from([False, False, True])] * 5)), max_size=4))
def test_what_is_not_looked_at_again_would_be_told_the_same(first: World, then: list[tuple[World, Any]]) -> None:
    waits, told = Waits(), dict[str, Decision]()
    world = first
    for step in range(len(then) + 1):
        seen = market(world)
        waits.enter(seen)
        for task in waiting(world[2], world[4]):
            decision, _ = alone(task, world)
            if waits.knows(task):
                assert decision == told[task.id]
            elif not decision.shards:
                waits.add(task)
                told[task.id] = decision
        if step < len(then):
            world = changed(world, *then[step])


def test_while_nothing_but_the_height_changes_no_task_is_looked_at_again() -> None:
    task = state_pb2.Task(id="t1", owner="alice", phase=PENDING, spec=tx_pb2.TaskSpec(min_nodes=1, max_nodes=1))
    waits = Waits()
    waits.enter(market(([], {}, [task], {}, 5)))
    waits.add(task)
    waits.enter(market(([], {}, [task], {}, 6)))
    assert waits.knows(task)
    node = state_pb2.Node(id="n1", name="n1")
    waits.enter(market(([node], {}, [task], {}, 6)))
    assert not waits.knows(task), "a node has come"


def test_the_height_counts_where_a_jail_ends_or_a_task_stands_still() -> None:
    task = state_pb2.Task(id="t1", owner="alice", phase=PENDING, spec=tx_pb2.TaskSpec(min_nodes=1, max_nodes=1))
    jailed = state_pb2.Node(id="n1", name="n1", jailed=True, jailed_until_height=10)
    stands = state_pb2.Task(id="t2", phase=RUNNING, shards=[tx_pb2.Shard(node_id="n1")], last_progress_height=20)
    for at in (10, 20 + STALL_BLOCKS):
        waits = Waits()
        for height in (at - 2, at - 1, at):
            waits.enter(market(([jailed], {}, [task, stands], {}, height)))
            assert waits.knows(task) == (height == at - 1), height
            waits.add(task)


def test_tasks_that_ask_for_the_same_share_one_decision() -> None:
    spec = tx_pb2.TaskSpec(min_nodes=1, max_nodes=1, global_batch=4)
    live = [
        state_pb2.Task(id=name, owner="alice", phase=PENDING, spec=spec, created_height=height)
        for height, name in enumerate(TASKS)
    ]
    decisions = Decisions(market(([state_pb2.Node(id="n1", name="n1")], {}, live, {}, 5)))
    made = [decisions.about(task, demand_of(task, {})) for task in live]
    assert all(each is made[0] for each in made)


def test_a_task_that_its_node_still_works_on_gets_a_decision_of_its_own() -> None:
    spec = tx_pb2.TaskSpec(min_nodes=1, max_nodes=1, global_batch=4, price_utlk_per_gflop=9)
    mine, other = (state_pb2.Task(id=name, owner="alice", phase=PENDING, spec=spec) for name in ("t1", "t2"))
    node = state_pb2.Node(id="n1", name="n1", speed_flops=5, stake_utlk=10**6)
    offer = scheduler_pb2.Offer(node_id="n1", state="busy", running_tasks=["t1"], speed_flops=5, slots=1)
    world: World = ([node], {"n1": offer}, [mine, other], {}, 5)
    decisions = Decisions(market(world))
    for task, placed in ((other, False), (mine, True), (other, False)):
        made, _ = decisions.about(task, demand_of(task, {}))
        assert (bool(made.shards), made) == (placed, alone(task, world)[0])


@given(worlds(), worlds())
def test_the_queue_is_the_same_when_what_tasks_ask_for_is_remembered(first: World, second: World) -> None:
    demands = Demands()
    for _, _, live, _, height in (first, second, first):
        held = shards_by_owner(live)
        asked = waiting(live, height)
        assert list(demands.queue(asked, live)) == queue_order([demand_of(task, held) for task in asked])
