"""What the policy is shown of the ledger and the market: slots, stakes and who holds how much."""

from __future__ import annotations

from typing import Any

import pytest
from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2
from talkoo_scheduler.policy import Candidate
from talkoo_scheduler.view import (
    REASON_MAX_BYTES,
    candidates_for,
    demand_of,
    needs_placement,
    place_message,
    running_on,
    shards_by_owner,
)

RUNNING = state_pb2.TASK_PHASE_RUNNING


def task(task_id: str, phase: state_pb2.TaskPhase = state_pb2.TASK_PHASE_PENDING, *on: str, **more: Any) -> Any:
    spec = tx_pb2.TaskSpec(name=f"name-of-{task_id}", steps=30, steps_per_segment=10, global_batch=8)
    shards = [tx_pb2.Shard(node_id=node, rank=rank, samples=4) for rank, node in enumerate(on)]
    return state_pb2.Task(**({"id": task_id, "owner": "alice", "spec": spec, "phase": phase, "shards": shards} | more))


def seen(mine: Any, offer: scheduler_pb2.Offer | None, *others: Any) -> Candidate:
    """The one node `n` as `mine` sees it."""
    node = state_pb2.Node(id="n", name="n", memory_bytes=100, speed_flops=5)
    offers = {} if offer is None else {"n": offer}
    (found,) = candidates_for(mine, [node], offers, {}, running_on([mine, *others]), {})
    return found


def offer(state: str = "ready", *running: str, **more: Any) -> scheduler_pb2.Offer:
    values = {"node_id": "n", "state": state, "running_tasks": running, "free_memory_bytes": 100, "slots": 1}
    return scheduler_pb2.Offer(**(values | more))


def test_a_node_just_placed_is_busy_although_its_offer_does_not_say_so_yet() -> None:
    found = seen(task("t2"), offer("ready"), task("t1", RUNNING, "n"))
    assert (found.state, found.state_reason) == ("busy", "runs name-of-t1")


def test_a_second_slot_takes_a_second_task_and_no_third() -> None:
    first, second = task("t1", RUNNING, "n"), task("t2", RUNNING, "n")
    assert seen(task("t3"), offer("ready", slots=2), first).state == "ready"
    assert seen(task("t3"), offer("ready", slots=2), first, second).state == "busy"


def test_a_trained_task_that_waits_for_audits_holds_no_slot() -> None:
    assert seen(task("t2"), offer("ready"), task("t1", state_pb2.TASK_PHASE_VERIFYING, "n")).state == "ready"


@pytest.mark.parametrize("phase", [state_pb2.TASK_PHASE_PENDING, RUNNING])
def test_a_node_busy_with_this_very_task_is_free_for_its_next_attempt(phase: state_pb2.TaskPhase) -> None:
    """The ledger clears the shards of a freed placement, so the offer alone tells whom the node works for."""
    mine = task("t1", phase, *(["n"] if phase == RUNNING else []))
    assert seen(mine, offer("busy", "t1")).state == "ready"
    assert seen(mine, offer("busy", "t1", "t2")).state == "busy"


def test_draining_stays_draining_and_silence_is_no_offer() -> None:
    assert seen(task("t1"), offer("draining", reason="disk full")).state_reason == "disk full"
    assert not seen(task("t1"), None).offered


def test_memory_is_the_least_of_what_is_registered_and_what_is_free() -> None:
    assert seen(task("t1"), offer(free_memory_bytes=40)).memory_bytes == 40
    assert seen(task("t1"), offer(free_memory_bytes=4000)).memory_bytes == 100


def test_a_node_is_outbound_only_when_the_ledger_or_its_newest_offer_says_so() -> None:
    assert not seen(task("t1"), offer()).outbound_only
    assert seen(task("t1"), offer(outbound_only=True)).outbound_only
    mine = state_pb2.Node(id="n", name="n", outbound_only=True)
    (found,) = candidates_for(task("t1"), [mine], {}, {}, {}, {})
    assert found.outbound_only


def test_an_owner_s_other_shards_are_counted_and_those_of_ended_tasks_are_not() -> None:
    live = [task("t1", RUNNING, "a", "b"), task("t2"), task("t3", RUNNING, "c", owner="bob")]
    held = shards_by_owner([*live, task("t4", state_pb2.TASK_PHASE_COMPLETED, "d")])
    assert held == {"alice": 2, "bob": 1}
    assert [demand_of(each, held).owner_running for each in live] == [0, 2, 0]


def test_a_task_shorter_than_a_segment_is_weighed_by_its_steps() -> None:
    short = task("t1")
    short.spec.steps = 4
    assert demand_of(short, {}).steps_per_segment == 4


def test_running_tasks_are_placed_anew_only_after_the_ledger_s_bound() -> None:
    running = task("t1", RUNNING, "n", last_progress_height=100)
    assert not needs_placement(running, 159, 60)
    assert needs_placement(running, 160, 60)
    assert needs_placement(task("t2"), 0, 60)
    assert not needs_placement(task("t3", state_pb2.TASK_PHASE_VERIFYING, last_progress_height=1), 900, 60)


def test_a_reason_longer_than_the_ledger_takes_is_cut_at_a_whole_character() -> None:
    reason = place_message(task("t1"), [], "ä" * REASON_MAX_BYTES + "x").reason
    assert len(reason.encode()) == REASON_MAX_BYTES
    assert set(reason) == {"ä"}
