"""The next step for a TrainingTask: each state has one, every life ends, and nothing is sent twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talkoo_operator.plan import ENDED, RELEASE_AFTER_S, Do, Seen, next_step


def seen(status: dict[str, Any] | None = None, **changes: Any) -> Seen:
    """A task of which everything is in order."""
    base: dict[str, Any] = {
        "generation": 1,
        "finalizer": True,
        "deleted_for_s": None,
        "suspended": False,
        "expires_in_s": None,
    }
    return Seen(**base | changes, status=status or {})


SIGNED = {"submission": {"transaction": "c2lnbmVk"}}
STANDS = {"taskId": "task-1", "phase": "Running"}
REFUSED = {"reason": "InvalidSpec", "observedGeneration": 1}
UNPLACED = STANDS | {"phase": "Pending", "attempt": 0}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (seen(finalizer=False), Do.CLAIM),
        (seen(finalizer=False, suspended=True), Do.CLAIM),
        (seen(), Do.SUBMIT),
        (seen(suspended=True), Do.HOLD),
        (seen(REFUSED, retry_in_s=9.0), Do.REST),
        (seen(REFUSED, retry_in_s=0.0), Do.SUBMIT),
        (seen(REFUSED, retry_in_s=9.0, generation=2), Do.SUBMIT),
        (seen(REFUSED, retry_in_s=9.0, suspended=True), Do.HOLD),
        (seen(REFUSED, retry_in_s=9.0, cancelled=True), Do.END),
        (seen(cancelled=True), Do.END),
        (seen(SIGNED, cancelled=True), Do.RESUME),
        (seen(STANDS, cancelled=True), Do.END),
        (seen(STANDS | {"ending": "Cancelled"}, cancelled=True), Do.CANCEL),
        (seen(deadline_in_s=0.0), Do.END),
        (seen(deadline_in_s=9.0), Do.SUBMIT),
        (seen(STANDS, deadline_in_s=-1.0), Do.END),
        (seen(UNPLACED, suspended=True), Do.END),
        (seen(UNPLACED), Do.FOLLOW),
        (seen(UNPLACED | {"attempt": 1}, suspended=True), Do.FOLLOW),
        (seen(UNPLACED | {"ending": "Suspended"}), Do.CANCEL),
        (seen(STANDS | {"phase": "Failed", "unsettled": True}), Do.FOLLOW),
        (seen(STANDS | {"phase": "Failed", "unsettled": True}, expires_in_s=0.0), Do.EXPIRE),
        (seen(STANDS | {"phase": "Failed", "unsettled": True}, deleted_for_s=0.0), Do.RELEASE),
        (seen(SIGNED), Do.RESUME),
        (seen(SIGNED, suspended=True), Do.RESUME),
        (seen(STANDS), Do.FOLLOW),
        (seen(STANDS, suspended=True), Do.FOLLOW),
        (seen(STANDS | SIGNED), Do.FOLLOW),
        (seen(STANDS | {"phase": "Succeeded"}, finalizer=True), Do.RELEASE),
        (seen(STANDS | {"phase": "Succeeded"}, finalizer=False), Do.REST),
        (seen({"phase": "Succeeded", "modelVersion": "m@1"}), Do.REGISTER),
        (seen({"phase": "Succeeded", "modelVersion": "m@1", "registeredModel": "m@1"}), Do.RELEASE),
        (seen({"phase": "Failed"}, finalizer=False, expires_in_s=9.0), Do.REST),
        (seen({"phase": "Failed"}, finalizer=False, expires_in_s=0.0), Do.EXPIRE),
        (seen(deleted_for_s=0.0), Do.RELEASE),
        (seen(deleted_for_s=0.0, finalizer=False), Do.REST),
        (seen(SIGNED, deleted_for_s=0.0), Do.RESUME),
        (seen(STANDS, deleted_for_s=0.0), Do.CANCEL),
        (seen(STANDS | {"phase": "Failed"}, deleted_for_s=0.0), Do.RELEASE),
        (seen(STANDS, deleted_for_s=RELEASE_AFTER_S + 1), Do.RELEASE),
        (seen(SIGNED, deleted_for_s=RELEASE_AFTER_S + 1), Do.RELEASE),
    ],
)
def test_each_state_has_its_step(given: Seen, wanted: Do) -> None:
    assert next_step(given).do is wanted


def test_an_ended_task_is_looked_at_again_when_its_time_is_over() -> None:
    step = next_step(seen({"phase": "Failed"}, finalizer=False, expires_in_s=9.0))
    assert (step.do, step.again_s) == (Do.REST, 9.0)


statuses = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from(["", "Pending", "Running", "Verifying", *sorted(ENDED)]),
        "taskId": st.sampled_from(["", "task-1"]),
        "submission": st.fixed_dictionaries({}, optional={"transaction": st.sampled_from(["", "c2lnbmVk"])}),
        "modelVersion": st.just("m@1"),
        "registeredModel": st.just("m@1"),
        "attempt": st.integers(0, 2),
        "ending": st.sampled_from(["", "Cancelled", "DeadlineExceeded", "Suspended"]),
        "unsettled": st.booleans(),
        "observedGeneration": st.integers(1, 3),
    },
)
anything = st.builds(
    Seen,
    generation=st.integers(1, 3),
    finalizer=st.booleans(),
    deleted_for_s=st.none() | st.floats(0, 1000),
    suspended=st.booleans(),
    expires_in_s=st.none() | st.floats(-1, 1000),
    status=statuses,
    cancelled=st.booleans(),
    deadline_in_s=st.none() | st.floats(-1, 1000),
    retry_in_s=st.none() | st.floats(-1, 1000),
)


@given(anything)
def test_whatever_is_seen_there_is_a_step_and_a_reason(state: Seen) -> None:
    assert next_step(state).reason


@given(anything)
def test_nothing_is_signed_where_something_may_have_been_sent(state: Seen) -> None:
    if next_step(state).do is Do.SUBMIT:
        assert not state.task_id
        assert not state.recorded
        assert state.deleted_for_s is None
        assert state.finalizer, "else a deletion in this moment would lose the task on the ledger"


@given(anything)
def test_nothing_is_sent_for_who_cancelled_or_came_too_late_or_waits(state: Seen) -> None:
    if next_step(state).do is Do.SUBMIT:
        assert not state.cancelled
        assert not state.suspended
        assert state.deadline_in_s is None or state.deadline_in_s > 0


@given(anything)
def test_only_a_reason_that_was_written_down_cancels(state: Seen) -> None:
    if next_step(state).do is Do.CANCEL:
        assert state.ending or state.deleted_for_s is not None


@given(anything)
def test_a_deleted_object_never_waits_for_ever(state: Seen) -> None:
    if state.deleted_for_s is not None and state.deleted_for_s > RELEASE_AFTER_S:
        assert next_step(state).do is (Do.RELEASE if state.finalizer else Do.REST)


@given(anything)
def test_a_task_that_may_stand_on_the_ledger_is_not_let_go_silently(state: Seen) -> None:
    step = next_step(state)
    open_on_the_ledger = (state.task_id or state.recorded) and state.phase not in ENDED
    if step.do is Do.RELEASE and open_on_the_ledger:
        assert state.deleted_for_s is not None
        assert state.deleted_for_s > RELEASE_AFTER_S
