"""A TrainingTask's life under the real operator: what its spec asks for happens, and its status is true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from talkoo_sim.operator_bed import eventually, waits

pytestmark = [pytest.mark.federation, pytest.mark.timeout(900)]
SPACE = "life"


@pytest.fixture(name="space")
def _space(space: Any) -> Iterator[Any]:
    """A namespace of alice's, emptied afterwards."""
    space.namespace(SPACE, "alice")
    yield space
    space.cluster.kubectl("-n", SPACE, "delete", "tt", "--all", "--timeout=100s", timeout_s=110.0)


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", ())}


def test_a_task_waits_with_its_reason_and_is_withdrawn_and_sent_again_and_cancelled(space: Any) -> None:
    space.submit(SPACE, "one")
    status = space.until(SPACE, "one", waits)
    assert "no node is registered" in status["message"]
    assert status["tokens"] == {"escrowed": "1.0 TLK", "spent": "0.0 TLK"}
    assert status["observedGeneration"] == space.get(SPACE, "one")["metadata"]["generation"]
    assert conditions(status)["Funded"] == ("True", "InEscrow")
    assert conditions(status)["Placed"] == ("False", "WaitingForPlacement")
    first = status["taskId"]

    space.patch(SPACE, "one", json.dumps({"spec": {"suspend": True}}))
    status = space.until(SPACE, "one", lambda s: s.get("phase") == "Suspended")
    assert "taskId" not in status
    assert status["previous"][0]["taskId"] == first
    assert conditions(status)["Suspended"][0] == "True"
    (before,) = [t for t in space.on_ledger("alice") if t.id == first]
    assert before.escrow_utlk == 0, "its tokens have returned"

    space.patch(SPACE, "one", json.dumps({"spec": {"suspend": False}}))
    status = space.until(SPACE, "one", waits)
    assert status["taskId"] != first
    assert conditions(status)["Suspended"] == ("False", "NotSuspended")

    space.patch(SPACE, "one", json.dumps({"spec": {"cancel": True}}))
    status = space.until(SPACE, "one", lambda s: s.get("phase") == "Cancelled")
    assert status["tokens"]["escrowed"] == "0.0 TLK"
    assert conditions(status)["Succeeded"] == ("False", "Cancelled")
    assert "finalizers" not in eventually(
        lambda: m if "finalizers" not in (m := space.get(SPACE, "one")["metadata"]) else None, "it is let go"
    )


def test_a_deadline_ends_a_task_that_waits_and_the_object_goes_after_its_time(space: Any) -> None:
    space.submit(SPACE, "late", deadlineSeconds=8, retries=3, ttlSecondsAfterFinished=4)
    status = space.until(SPACE, "late", lambda s: s.get("phase") == "Failed")
    assert (status["reason"], status.get("retried")) == ("DeadlineExceeded", None)
    eventually(lambda: "late" not in space.cluster.kubectl("-n", SPACE, "get", "tt", "-o", "name"), "it is deleted")
    (task,) = [t for t in space.on_ledger("alice") if t.spec.name == "late"]
    assert task.escrow_utlk == 0


def test_deleting_the_object_cancels_its_task(space: Any) -> None:
    space.submit(SPACE, "deleted")
    task_id = space.until(SPACE, "deleted", waits)["taskId"]
    space.cluster.kubectl("-n", SPACE, "delete", "tt", "deleted", "--timeout=60s")
    (task,) = [t for t in space.on_ledger("alice") if t.id == task_id]
    assert (task.finished_height > 0, task.escrow_utlk) == (True, 0)


def test_inputs_that_come_late_are_waited_for_and_wrong_ones_are_told(space: Any) -> None:
    space.submit(SPACE, "inputs", program={"configMap": "absent", "module": "tiny", "flopsPerSample": 1})
    status = space.until(SPACE, "inputs", lambda s: s.get("reason") == "InputsMissing")
    assert "absent" in status["message"]
    broken = {"tiny.py": "def build_model(config): ...", "tiny.txt": "data"}
    metadata = {"name": "absent", "namespace": SPACE}
    space.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": broken})
    status = space.until(SPACE, "inputs", lambda s: s.get("reason") == "InvalidSpec")
    assert conditions(status)["Accepted"] == ("False", "InvalidSpec")
    assert "retryAt" in status
    events = space.cluster.get("-n", SPACE, "events", "--field-selector=involvedObject.name=inputs")["items"]
    assert {"InputsMissing", "InvalidSpec"} <= {event["reason"] for event in events}


def test_a_budget_that_is_too_small_is_said_before_money_moves(space: Any) -> None:
    space.submit(SPACE, "poor", budget="0.01 TLK", steps=10_000, globalBatch=1000)
    status = space.until(SPACE, "poor", lambda s: s.get("reason") == "BudgetTooSmall")
    assert "raise spec.budget by" in status["message"]
    assert not [t for t in space.on_ledger("alice") if t.spec.name == "poor"]


def test_someone_elses_edits_at_the_same_moment_lose_nothing(space: Any) -> None:
    """Labels change while the operator writes finalizer and status: each write is over what was read."""
    space.submit(SPACE, "edited")
    for number in range(20):
        space.cluster.kubectl("-n", SPACE, "label", "tt", "edited", f"edit-{number}=yes")
    space.until(SPACE, "edited", waits)
    labels = space.get(SPACE, "edited")["metadata"]["labels"]
    assert {f"edit-{number}" for number in range(20)} <= set(labels)
    assert len([t for t in space.on_ledger("alice") if t.spec.name == "edited"]) == 1
