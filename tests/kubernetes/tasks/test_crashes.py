"""Whatever is killed, and whenever: each object becomes one task on the ledger, neither none nor two."""

from __future__ import annotations

import time
from typing import Any

import pytest

from talkoo_sim.dying_operator import POINTS
from talkoo_sim.operator_bed import eventually, make_namespace, waits

pytestmark = [pytest.mark.federation, pytest.mark.timeout(900)]
SPACE = "crashes"
LEASE_S = 15.0
"""As `talkoo_operator.leading` says."""


def named(bed: Any, name: str) -> list[Any]:
    return [task for task in bed.on_ledger("alice") if task.spec.name == name]


@pytest.mark.parametrize("point", POINTS)
def test_an_operator_killed_on_the_way_to_the_ledger_neither_loses_nor_doubles_a_task(bed: Any, point: str) -> None:
    bed.namespace(SPACE, "alice")
    dying = bed.operator("dying", module="talkoo_sim.dying_operator", arguments=[point])
    eventually(lambda: dying.leads, "the operator leads")
    name = f"dies-{point}"
    bed.submit(SPACE, name)
    assert dying.process.wait(60) == -9, dying.said()
    recorded = "transaction" in bed.status(SPACE, name).get("submission", {})
    assert recorded == (point != "before-record")
    assert "taskId" not in bed.status(SPACE, name)
    bed.operator("next")
    status = bed.until(SPACE, name, waits)
    (task,) = named(bed, name)
    assert task.id == status["taskId"]
    bed.cluster.kubectl("-n", SPACE, "delete", "tt", name, "--timeout=60s")


def test_of_two_replicas_the_other_takes_over_within_the_lease(bed: Any) -> None:
    bed.namespace(SPACE, "alice")
    first = bed.operator("replica")
    eventually(lambda: first.leads, "the first leads")
    second = bed.operator("replica")
    eventually(lambda: second.probe()[0] == 200, "the second is healthy while it waits")
    assert not second.leads
    first.kill()
    killed = time.monotonic()
    bed.submit(SPACE, "handed-over")
    eventually(lambda: second.leads, "the second leads", patience_s=2 * LEASE_S)
    assert time.monotonic() - killed < LEASE_S + 5
    bed.until(SPACE, "handed-over", waits)
    assert len(named(bed, "handed-over")) == 1
    bed.cluster.kubectl("-n", SPACE, "delete", "tt", "handed-over", "--timeout=60s")


@pytest.mark.parametrize("part", ["kube-apiserver", "etcd"])
def test_a_restart_of_the_control_plane_is_lived_through(bed: Any, part: str) -> None:
    bed.namespace(SPACE, "alice")
    operator = bed.operator("steady", resync_s=5.0)
    eventually(lambda: operator.leads, "the operator leads")
    names = [f"{part}-{number}" for number in range(6)]
    for name in names[:3]:
        bed.submit(SPACE, name)
    bed.cluster.restart(part)
    bed.cluster.ready()
    for name in names[3:]:
        eventually(lambda name=name: bed.submit(SPACE, name) is None, f"{name} is taken")
    if operator.process.poll() is not None:  # the Lease was lost meanwhile: kubelet would start it again
        bed.operator("steady", resync_s=5.0)
    for name in names:
        bed.until(SPACE, name, waits)
        assert len(named(bed, name)) == 1
    bed.cluster.kubectl("-n", SPACE, "delete", "tt", "--all", "--timeout=90s")


def test_an_object_deleted_while_no_operator_lives_has_its_task_cancelled_later(bed: Any) -> None:
    """The finalizer keeps the object until somebody has told the ledger."""
    bed.namespace(SPACE, "alice")
    operator = bed.operator("away")
    bed.submit(SPACE, "orphan")
    task_id = bed.until(SPACE, "orphan", waits)["taskId"]
    operator.kill()
    bed.cluster.kubectl("-n", SPACE, "delete", "tt", "orphan", "--wait=false")
    assert "deletionTimestamp" in bed.get(SPACE, "orphan")["metadata"]
    bed.operator("back")
    eventually(lambda: "orphan" not in bed.cluster.kubectl("-n", SPACE, "get", "tt", "-o", "name"), "it is let go")
    (task,) = [each for each in bed.on_ledger("alice") if each.id == task_id]
    assert (task.finished_height > 0, task.escrow_utlk) == (True, 0)


def test_a_namespace_that_goes_takes_its_tasks_along(bed: Any) -> None:
    """The account's Secret may be gone before the tasks are: what was read of it is enough."""
    make_namespace(bed.cluster, "leaving")
    bed.namespace("leaving", "alice")
    bed.operator("leaving")
    for number in range(3):
        bed.submit("leaving", f"goes-{number}")
    for number in range(3):
        bed.until("leaving", f"goes-{number}", waits)
    bed.cluster.kubectl("delete", "namespace", "leaving", "--timeout=100s", timeout_s=110)
    gone = [each for each in bed.on_ledger("alice") if each.spec.name.startswith("goes-")]
    assert [(each.finished_height > 0, each.escrow_utlk) for each in gone] == [(True, 0)] * 3


@pytest.mark.parametrize("ahead_s", [86_400, -86_400])
def test_an_operator_whose_clock_is_a_day_off_keeps_deadlines_and_cancels_what_is_deleted(
    bed: Any, ahead_s: int
) -> None:
    """By its own clock every deadline would have passed, and a deleted object would have waited long enough."""
    bed.namespace(SPACE, "alice")
    operator = bed.operator("skewed", module="talkoo_sim.skewed_operator", arguments=[str(ahead_s)])
    eventually(lambda: operator.leads, "the operator leads")
    long, short = f"long{ahead_s}", f"short{ahead_s}"
    bed.submit(SPACE, long, deadlineSeconds=3600)
    bed.submit(SPACE, short, deadlineSeconds=5)
    status = bed.until(SPACE, short, lambda s: s.get("phase") == "Failed")
    assert status["reason"] == "DeadlineExceeded"
    assert status["finishedAt"][:10] == bed.get(SPACE, short)["metadata"]["creationTimestamp"][:10]
    task_id = bed.until(SPACE, long, waits)["taskId"]
    bed.cluster.kubectl("-n", SPACE, "delete", "tt", long, short, "--timeout=60s")
    (task,) = [each for each in bed.on_ledger("alice") if each.id == task_id]
    assert (task.finished_height > 0, task.escrow_utlk) == (True, 0)
