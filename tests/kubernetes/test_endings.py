"""How a TrainingTask ends or begins again, and what of it stays in its status."""

from __future__ import annotations

from typing import Any

import pytest
from talkoo_operator.clock import ServerClock
from talkoo_operator.endings import (
    MAX_PREVIOUS,
    OF_ONE_TASK,
    backoff_s,
    begun_again,
    ended_before_the_ledger,
    with_failure,
)
from talkoo_operator.following import Pace
from talkoo_operator.freshness import Freshness
from talkoo_operator.quota import HOPELESS, QUOTA, Waiting, check_quota
from talkoo_operator.status import changes, estimated_start, held, with_suspension

from talkoo_core.errors import InsufficientFunds

NOW, IN_30_S, IN_60_S = "2026-01-01T00:00:00Z", "2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z"
FAILED: dict[str, Any] = {
    "phase": "Failed",
    "reason": "LossNan",
    "message": "the loss is nan at step 3",
    "taskId": "task-1",
    "submission": {"account": "tlk1x"},
    "attempt": 1,
    "step": 3,
    "tokens": {"escrowed": "0.0 TLK", "spent": "2.0 TLK"},
    "finishedAt": NOW,
}


def test_a_failed_task_is_tried_anew_after_a_pause_and_what_it_was_is_kept() -> None:
    status = begun_again({}, FAILED, {"retries": 2, "retryBackoffSeconds": 30}, 1, NOW)
    assert (status["phase"], status["reason"], status["retried"], status["retryAt"]) == (
        "Pending",
        "Backoff",
        1,
        IN_30_S,
    )
    assert not set(OF_ONE_TASK) & set(status)
    (before,) = status["previous"]
    assert (before["taskId"], before["reason"], before["spent"]) == ("task-1", "LossNan", "2.0 TLK")
    again = begun_again(status, {**status, **FAILED, "taskId": "task-2"}, {"retries": 2}, 1, NOW)
    assert (again["retried"], again["retryAt"]) == (2, IN_60_S)
    assert [each["taskId"] for each in again["previous"]] == ["task-1", "task-2"]
    last = {**again, **FAILED, "taskId": "task-3"}
    assert begun_again(again, last, {"retries": 2}, 1, NOW) == last, "no third time"


@pytest.mark.parametrize(
    ("made", "spec"),
    [
        (FAILED, {"retries": 0}),
        (FAILED, {"retries": 3, "cancel": True}),
        (FAILED | {"reason": "DeadlineExceeded"}, {"retries": 3}),
        (FAILED | {"phase": "Cancelled"}, {"retries": 3}),
        (FAILED | {"phase": "Succeeded"}, {"retries": 3}),
    ],
)
def test_what_is_not_tried_anew(made: dict[str, Any], spec: dict[str, Any]) -> None:
    assert begun_again({}, made, spec, 1, NOW) == made


def test_a_withdrawn_task_begins_without_its_task_on_the_ledger() -> None:
    status = begun_again({"ending": "Suspended"}, FAILED | {"phase": "Cancelled", "ending": "Suspended"}, {}, 1, NOW)
    assert (status["phase"], status["reason"]) == ("Pending", "Withdrawn")
    assert "taskId" not in status
    assert "ending" not in status


def test_what_is_kept_of_earlier_tasks_has_a_bound() -> None:
    status: dict[str, Any] = {}
    for number in range(MAX_PREVIOUS + 5):
        ended = {**status, **FAILED, "phase": "Cancelled", "taskId": f"task-{number}"}
        status = begun_again({"ending": "Suspended"}, ended, {}, 1, NOW)
    assert len(status["previous"]) == MAX_PREVIOUS
    assert status["previous"][-1]["taskId"] == f"task-{MAX_PREVIOUS + 4}"


def test_the_pause_doubles_up_to_an_hour_or_to_itself() -> None:
    assert [backoff_s(30, n) for n in (0, 1, 2, 9)] == [30, 60, 120, 3600]
    assert [backoff_s(7200, n) for n in (0, 5)] == [7200, 7200]


def test_a_failure_names_worker_step_and_last_lines_within_bounds() -> None:
    failure = with_failure(FAILED, "north-1", "loss_nan", ["x" * 1000] * 50)["failure"]
    assert (failure["worker"], failure["kind"], failure["step"]) == ("north-1", "loss_nan", 3)
    assert len(failure["logs"]) == 20
    assert len(failure["logs"][0]) == 400


def test_what_never_reached_the_ledger_ends_in_its_own_words() -> None:
    waited = {"message": "3 TLK are missing"}
    late = ended_before_the_ledger(waited, "DeadlineExceeded", 1, NOW)
    assert (late["phase"], late["reason"], late["finishedAt"]) == ("Failed", "DeadlineExceeded", NOW)
    assert "3 TLK are missing" in late["message"]
    assert ended_before_the_ledger(waited, "Cancelled", 1, NOW)["phase"] == "Cancelled"


def test_suspending_what_was_placed_is_answered_with_the_truth() -> None:
    said = with_suspension({}, True, 1, NOW)["conditions"][0]
    assert (said["type"], said["status"], said["reason"]) == ("Suspended", "False", "NoPause")
    assert with_suspension({}, False, 1, NOW) == {}
    was_held = held({}, 1, NOW)
    assert with_suspension(was_held, False, 1, NOW)["conditions"][-1]["reason"] == "NotSuspended"


def test_a_patch_holds_what_differs_and_removes_what_is_gone() -> None:
    old = {"a": 1, "b": {"c": 1, "d": 2}, "e": [1], "f": 4}
    patch = changes(old, {"a": 1, "b": {"c": 3}, "e": [1, 2], "g": None})
    assert patch == {"b": {"c": 3, "d": None}, "e": [1, 2], "f": None}
    assert changes(old, dict(old)) == {}


def test_a_start_is_estimated_only_where_enough_is_known() -> None:
    free_at = {"one": 10.0, "two": 30.0}
    assert estimated_start(2, 1, ["one", "two"], free_at) == 10.0
    assert estimated_start(2, 0, ["one", "two"], free_at) == 30.0
    assert estimated_start(3, 0, ["one", "two"], free_at) is None
    assert estimated_start(2, 0, ["one", "unknown"], free_at) is None
    assert estimated_start(2, 2, ["one"], free_at) is None, "it is about to start"


def test_the_pace_is_that_of_one_attempt_over_the_last_minute() -> None:
    pace = Pace()
    assert pace.seen(1, 0, 100.0) == 0.0
    assert pace.seen(1, 1, 101.0) == 0.0, "too little is known"
    assert pace.seen(1, 10, 105.0) == 2.0
    assert pace.seen(1, 1000, 205.0) == pytest.approx(9.9), "what is older than a minute counts no more"
    assert pace.seen(2, 0, 206.0) == 0.0


def test_a_quota_counts_what_is_spent_and_what_is_in_escrow() -> None:
    check_quota("a", 10, [(2, 3), (1, 0)], 4)
    with pytest.raises(InsufficientFunds, match="does not fit") as caught:
        check_quota("a", 10, [(2, 3), (1, 0)], 5)
    assert caught.value.code == QUOTA
    with pytest.raises(InsufficientFunds, match="lower it") as caught:
        check_quota("a", 10, [], 11)
    assert caught.value.code == HOPELESS


def test_only_more_priority_in_the_same_namespace_goes_before() -> None:
    waiting = Waiting()
    waiting.add(("a", "high"), 5)
    assert waiting.before(("a", "low"), 1) == ("a", "high")
    assert waiting.before(("a", "equal"), 5) is None
    assert waiting.before(("b", "low"), 1) is None
    assert waiting.before(("a", "high"), 1) is None, "not before itself"
    waiting.remove(("a", "high"))
    assert waiting.before(("a", "low"), 1) is None


def test_a_wrong_clock_here_is_corrected_by_the_api_servers() -> None:
    clock = ServerClock(lambda: 1_000_000.0)
    clock.learn("Thu, 01 Jan 1970 00:00:10 GMT")
    assert clock.now() == 10.0
    clock.learn("Thu, 01 Jan 1970 00:00:11 GMT")
    assert clock.now() == 10.0, "a second is the header's own step"
    clock.learn("Mon, 12 Jan 1970 13:46:41 GMT")
    assert clock.now() == 1_000_000.0


def thing(uid: str, version: int) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "resourceVersion": str(version)}}


def test_a_watch_owes_what_the_list_has_and_it_did_not_tell() -> None:
    now = [0.0]
    freshness = Freshness(lambda: now[0])
    freshness.told("tasks", thing("a", 5)["metadata"])
    freshness.listed("tasks", [thing("a", 5)])
    freshness.listed("nodes", [thing("n", 9)])
    now[0] = 4.0
    assert freshness.behind() == (4.0, "nodes")
    freshness.told("nodes", thing("n", 9)["metadata"])
    assert freshness.behind() == (0.0, "")


def test_an_object_that_changes_all_the_time_makes_no_watch_look_dead() -> None:
    now = [0.0]
    freshness = Freshness(lambda: now[0])
    for version in range(1, 20):
        freshness.listed("tasks", [thing("a", 10 * version)])  # just ahead of the watch
        now[0] += 60.0
        freshness.told("tasks", thing("a", 10 * version + 1)["metadata"])
        assert freshness.behind() == (0.0, "")


def test_what_is_deleted_is_owed_no_more() -> None:
    freshness = Freshness(lambda: 1.0)
    freshness.listed("tasks", [thing("a", 5), thing("b", 6)])
    freshness.told("tasks", thing("a", 7)["metadata"], gone=True)
    freshness.listed("tasks", [])
    assert freshness.behind() == (0.0, "")


def test_an_object_that_is_newer_than_a_list_is_not_forgotten_for_it_and_owed_by_the_next() -> None:
    now = [100.0]
    freshness = Freshness(lambda: now[0])
    freshness.told("tasks", thing("new", 12)["metadata"])
    freshness.listed("tasks", [thing("a", 10)])  # the list was made before, and took its time
    freshness.told("tasks", thing("a", 10)["metadata"])
    freshness.listed("tasks", [thing("a", 10), thing("new", 12)])
    now[0] = 200.0
    assert freshness.behind() == (0.0, "")
