"""A status says what the ledger says: phases, numbers, and conditions that change their time only with their status."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from talkoo_operator.status import LedgerTask, Progress, of_task, refused, waiting, with_condition

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
TASK = LedgerTask(
    id="task-1",
    phase="running",
    attempt=1,
    steps=90,
    segments=3,
    committed=1,
    accepted=0,
    discarded=0,
    escrow_utlk=70_000_000,
    spent_utlk=10_000_000,
    workers=("node-1", "node-2"),
    banned=(),
    failure="",
    failure_kind="",
    model_version="",
    placement_reason="two nodes, 8.1 GFLOP/s",
)


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}


def test_a_running_task_shows_step_share_loss_workers_and_tokens() -> None:
    progress = Progress(attempt=1, step=45, loss=0.51234567, samples_per_second=100.0, stage="training")
    status = of_task({}, TASK, progress, 4, NOW)
    assert (status["phase"], status["step"], status["progress"], status["loss"]) == ("Running", 45, "50%", "0.5123")
    assert status["workers"] == ["node-1", "node-2"]
    assert status["tokens"] == {"escrowed": "70.0 TLK", "spent": "10.0 TLK"}
    assert (status["observedGeneration"], status["startedAt"]) == (4, NOW)
    assert conditions(status) == {
        "Accepted": "True",
        "Funded": "True",
        "Placed": "True",
        "Running": "True",
        "Succeeded": "Unknown",
        "Verified": "Unknown",
    }


def test_without_word_of_the_nodes_the_committed_segments_count() -> None:
    assert of_task({}, TASK, None, 1, NOW)["step"] == 30


@pytest.mark.parametrize(
    ("changes", "phase", "verified", "succeeded"),
    [
        ({"phase": "pending", "workers": ()}, "Pending", "Unknown", "Unknown"),
        ({"phase": "verifying", "committed": 3, "accepted": 2}, "Verifying", "Unknown", "Unknown"),
        ({"phase": "completed", "committed": 3, "accepted": 3, "model_version": "m@1"}, "Succeeded", "True", "True"),
        ({"phase": "failed", "failure_kind": "no_nodes", "failure": "no node is left"}, "Failed", "False", "False"),
        ({"phase": "cancelled"}, "Cancelled", "False", "False"),
    ],
)
def test_verified_is_apart_from_succeeded(changes: dict[str, Any], phase: str, verified: str, succeeded: str) -> None:
    status = of_task({}, dataclasses.replace(TASK, **changes), None, 1, NOW)
    found = conditions(status)
    assert (status["phase"], found["Verified"], found["Succeeded"]) == (phase, verified, succeeded)
    assert ("finishedAt" in status) == (phase in ("Succeeded", "Failed", "Cancelled"))


def test_a_failure_says_the_ledgers_words_and_a_reason_in_one_word() -> None:
    status = of_task(
        {}, dataclasses.replace(TASK, phase="failed", failure_kind="no_nodes", failure="no node is left"), None, 1, NOW
    )
    assert (status["reason"], status["message"]) == ("NoNodes", "no node is left")


def test_a_pending_task_says_why_and_that_it_was_placed_before() -> None:
    pending = dataclasses.replace(TASK, phase="pending", workers=(), waits_for="2 of 3 nodes are busy")
    status = of_task({}, pending, None, 1, NOW)
    assert (status["reason"], status["message"]) == ("Preempted", "2 of 3 nodes are busy")
    assert of_task({}, dataclasses.replace(pending, attempt=0), None, 1, NOW)["reason"] == "WaitingForPlacement"


def test_times_are_kept_and_a_look_without_news_changes_nothing() -> None:
    first = of_task({}, TASK, None, 1, NOW)
    assert of_task(first, TASK, None, 1, LATER) == first
    done = of_task(first, dataclasses.replace(TASK, phase="completed", accepted=3, committed=3), None, 1, LATER)
    assert (done["startedAt"], done["finishedAt"]) == (NOW, LATER)
    times = {c["type"]: c["lastTransitionTime"] for c in done["conditions"]}
    since_start = {"Accepted": NOW, "Funded": NOW, "Placed": NOW}
    assert times == since_start | {"Running": LATER, "Succeeded": LATER, "Verified": LATER}


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    def one(status: dict[str, Any], holds: bool, message: str, now: str) -> dict[str, Any]:
        return with_condition(status, "Joined", holds=holds, reason="R", message=message, generation=1, now=now)

    first = one({}, False, "a", NOW)
    again = one(first, False, "b", LATER)
    assert again["conditions"][0]["lastTransitionTime"] == NOW
    assert again["conditions"][0]["message"] == "b"
    assert one(again, True, "c", LATER)["conditions"][0]["lastTransitionTime"] == LATER


def test_a_refused_specification_is_pending_with_the_error_in_full() -> None:
    status = refused({}, "spec.price is wrong", 3, NOW)
    assert (status["phase"], status["reason"], status["message"]) == ("Pending", "InvalidSpec", "spec.price is wrong")
    assert status["conditions"][0] | {"lastTransitionTime": NOW} == {
        "type": "Accepted",
        "status": "False",
        "reason": "InvalidSpec",
        "message": "spec.price is wrong",
        "observedGeneration": 3,
        "lastTransitionTime": NOW,
    }


def test_waiting_for_money_is_pending_and_suspended_is_its_own_phase() -> None:
    assert waiting({}, "InsufficientFunds", "3 TLK are missing", 1, NOW)["phase"] == "Pending"
    assert waiting({}, "Suspended", "spec.suspend is true", 1, NOW)["phase"] == "Suspended"


def test_a_message_has_a_bound() -> None:
    assert len(refused({}, "x" * 5000, 1, NOW)["message"]) == 1024
