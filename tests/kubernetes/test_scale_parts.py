"""What lets the operator look after many objects: shared reads, objects that are known, reservations, paced reviews."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talkoo_operator.known import Known
from talkoo_operator.objects import EVENTS_AT_ONCE, EVENTS_PER_S, Courtesy
from talkoo_operator.quota import Held, Reserved, check_quota, task_id_of
from talkoo_operator.reviews import FIRST_S, REVIEW_S, REVIEWS_PER_S, SPREAD, Reviews
from talkoo_operator.shared import Shared

from talkoo_core.errors import InsufficientFunds, NotFound

KEY = ("default", "a")


# -- shared reads --------------------------------------------------------------------------------------------------


class Source:
    """Says how often it was read; a read ends when it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.gate = asyncio.Semaphore(0)

    async def read(self) -> int:
        self.begun += 1
        mine = self.begun
        await self.gate.acquire()
        if mine == 3:
            raise NotFound("the third is missing")
        return mine


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_asks_while_a_read_goes_on_gets_the_next_one_and_all_of_these_the_same() -> None:
    shared, source = Shared(), Source()
    first = asyncio.create_task(shared.read("x", source.read))
    await turns()
    later = [asyncio.create_task(shared.read("x", source.read)) for _ in range(5)]
    await turns()
    assert source.begun == 1
    source.gate.release()
    assert await first == 1, "begun before they asked: not theirs"
    source.gate.release()
    assert await asyncio.gather(*later) == [2] * 5
    assert not shared._going
    assert not shared._next


async def test_a_failure_is_everybodys_who_waited_and_the_next_read_is_a_new_one() -> None:
    shared, source = Shared(), Source()
    source.begun = 2
    failing = [asyncio.create_task(shared.read("x", source.read)) for _ in range(2)]
    await turns()
    source.gate.release()
    for each in failing:
        with pytest.raises(NotFound):
            await each
    source.gate.release()
    assert await shared.read("x", source.read) == 4


async def test_one_that_is_cancelled_takes_nothing_from_the_others() -> None:
    shared, source = Shared(), Source()
    one, other = (asyncio.create_task(shared.read("x", source.read)) for _ in range(2))
    await turns()
    one.cancel()
    source.gate.release()
    assert await other == 1


async def test_other_names_are_other_reads() -> None:
    shared, source = Shared(), Source()
    source.gate.release()
    source.gate.release()
    assert set(await asyncio.gather(shared.read("x", source.read), shared.read("y", source.read))) == {1, 2}


# -- known objects -------------------------------------------------------------------------------------------------


def seen(version: int, **more: Any) -> dict[str, Any]:
    meta = {"namespace": "default", "name": "a", "resourceVersion": str(version), "managedFields": [{"long": "list"}]}
    return {"metadata": meta, **more}


def test_the_echo_of_our_own_write_and_what_is_older_are_no_news() -> None:
    known = Known(lambda key: None)
    assert known.take(seen(9))
    known.wrote(seen(10, status={"phase": "Pending"}))
    assert not known.take(seen(10, status={"phase": "Pending"})), "the watch tells what we wrote"
    assert not known.take(seen(9))
    assert known.take(seen(11))


def test_what_is_read_of_it_can_be_written_into_and_names_no_managers() -> None:
    known = Known(lambda key: None)
    known.take(seen(9, status={"phase": "Pending"}))
    mine = known.get(KEY)
    assert mine is not None
    assert "managedFields" not in mine["metadata"]
    mine["status"] = {"phase": "Running"}
    assert known.get(KEY) == {**mine, "status": {"phase": "Pending"}}


def test_a_write_that_is_answered_after_the_object_is_gone_does_not_bring_it_back() -> None:
    known = Known(lambda key: None)
    known.take(seen(9))
    known.drop(KEY)
    known.wrote(seen(10))
    assert known.get(KEY) is None
    assert len(known) == 0


def test_what_is_not_listed_is_not_known_any_more() -> None:
    known = Known(lambda key: None)
    known.take(seen(9))
    known.keep({KEY})
    assert [each["metadata"]["resourceVersion"] for each in known.of("default")] == ["9"]
    known.keep(set())
    assert known.get(KEY) is None


def test_what_a_watch_tells_before_our_write_is_answered_is_its_echo_unless_it_is_newer() -> None:
    news: list[Any] = []
    known = Known(news.append)
    known.take(seen(9))
    with known.writing(KEY):
        assert not known.take(seen(10)), "its answer is not here yet"
        known.wrote(seen(10))
    assert news == []
    with known.writing(KEY):
        assert not known.take(seen(12, spec="another's"))
        known.wrote(seen(11))
    assert news == [KEY]
    mine = known.get(KEY)
    assert mine is not None
    assert mine["spec"] == "another's"


def test_a_write_that_was_refused_hides_nothing_that_was_told_meanwhile() -> None:
    news: list[Any] = []
    known = Known(news.append)
    known.take(seen(9))
    with pytest.raises(NotFound), known.writing(KEY):
        known.take(seen(10))
        known.drop(KEY)
        raise NotFound("somebody was quicker")
    assert (news, known.get(KEY) is not None) == ([KEY], True)
    with known.writing(KEY):
        known.gone(KEY)
        known.wrote(seen(11))
    assert known.get(KEY) is None


# -- reservations --------------------------------------------------------------------------------------------------


def total(counted: list[tuple[int, int]]) -> int:
    return sum(escrow + spent for escrow, spent in counted)


def test_a_budget_on_its_way_counts_once_wherever_a_reading_sees_it() -> None:
    reserved = Reserved()
    began = reserved.begin()
    nothing = Held(began, {}, {})
    with reserved.reserve(5) as mine:
        assert total(reserved.with_held(nothing, "b")) == 5
        mine.signed(b"tx")
        recorded = {"a": (b"tx", 5)}
        on_ledger = {task_id_of(b"tx"): (4, 1)}
        for held in (nothing, Held(began, recorded, {}), Held(began, {}, on_ledger), Held(began, recorded, on_ledger)):
            assert total(reserved.with_held(held, "b")) == 5
    assert total(reserved.with_held(nothing, "b")) == 5, "that reading was made before it was final"
    later = reserved.begin()
    assert total(reserved.with_held(Held(later, {}, on_ledger), "b")) == 5
    assert total(reserved.with_held(nothing, "b")) == 5, "somebody may still have the reading before"
    reserved.begin()
    assert not reserved._there


def test_what_was_never_signed_is_free_again_at_once() -> None:
    reserved = Reserved()
    held = Held(reserved.begin(), {}, {})
    with pytest.raises(NotFound), reserved.reserve(5):
        raise NotFound("its ConfigMap is missing")
    assert total(reserved.with_held(held, "b")) == 0


def test_the_object_that_is_to_be_submitted_does_not_count_against_itself() -> None:
    reserved = Reserved()
    held = Held(reserved.begin(), {"a": (b"tx", 5), "b": (b"other", 7)}, {})
    assert total(reserved.with_held(held, "a")) == 7


LIMIT = 10


class World:
    """Submissions of one namespace in any order of their steps, against readings of any age."""

    def __init__(self) -> None:
        self.reserved = Reserved()
        self.reading: Held | None = None
        self.recorded: dict[str, tuple[bytes, int]] = {}
        self.ledger: dict[str, tuple[int, int]] = {}
        self.open: dict[str, tuple[Any, Any, int]] = {}

    def read(self) -> None:
        self.reading = Held(self.reserved.begin(), dict(self.recorded), dict(self.ledger))

    def begin(self, name: str, budget: int) -> None:
        if self.reading is None or name in self.open or name in self.recorded:
            return
        try:
            check_quota("n", LIMIT, self.reserved.with_held(self.reading, name), budget)
        except InsufficientFunds:
            return
        manager = self.reserved.reserve(budget)
        self.open[name] = manager, manager.__enter__(), budget

    def sign(self, name: str, salt: int) -> None:
        if name in self.open and name not in self.recorded:
            _, mine, budget = self.open[name]
            transaction = f"{name} {salt}".encode()
            if task_id_of(transaction) not in self.ledger:
                mine.signed(transaction)
                self.recorded[name] = transaction, budget

    def final(self, name: str) -> None:
        if name in self.recorded:
            transaction, budget = self.recorded[name]
            self.ledger[task_id_of(transaction)] = budget - 1, 1

    def end(self, name: str) -> None:
        """Its task's id is in the object; or it failed before it was signed."""
        if name in self.open and (name not in self.recorded or task_id_of(self.recorded[name][0]) in self.ledger):
            manager, _, _ = self.open.pop(name)
            self.recorded.pop(name, None)
            manager.__exit__(None, None, None)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "begin", "sign", "final", "end", "whole"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(3, 6),
    ),
    max_size=40,
)


@given(STEPS)
def test_a_namespace_never_spends_more_than_its_limit(steps: list[tuple[str, str, int]]) -> None:
    world = World()
    for number, (step, name, budget) in enumerate(steps):
        if step == "read":
            world.read()
        elif step == "begin":
            world.begin(name, budget)
        elif step == "sign":
            world.sign(name, number)
        elif step == "whole":
            world.begin(name, budget)
            world.sign(name, number)
            world.final(name)
            world.end(name)
        else:
            getattr(world, step)(name)
        assert total(list(world.ledger.values())) <= LIMIT


# -- reviews -------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_scheduler_is_asked_soon_until_it_has_spoken_and_then_rarely() -> None:
    clock = Clock()
    reviews = Reviews(clock, lambda: 0.5)
    assert reviews.due(KEY, 0, told=False)
    pauses = []
    for _ in range(4):
        reviews.answered(KEY, 0, False)
        pauses.append(reviews.pause_s(KEY))
    assert pauses == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S]
    reviews.answered(KEY, 0, True)
    assert reviews.pause_s(KEY) == REVIEW_S
    assert not reviews.due(KEY, 0, told=True)
    clock.now += REVIEW_S
    assert reviews.due(KEY, 0, told=True)


def test_a_new_attempt_is_asked_about_at_once_and_after_a_restart_what_was_told_is_good_for_a_while() -> None:
    clock = Clock()
    reviews = Reviews(clock, lambda: 0.5)
    assert not reviews.due(KEY, 0, told=True)
    assert 0 < reviews.pause_s(KEY) <= REVIEW_S
    assert reviews.due(KEY, 1, told=False)


def test_however_many_wait_they_ask_at_a_bounded_pace() -> None:
    clock = Clock()
    reviews = Reviews(clock, lambda: 0.0)
    for number in range(10_000):
        reviews.due(("default", f"t{number}"), 0, told=True)
    reviews.answered(KEY, 0, True)
    assert reviews.pause_s(KEY) == pytest.approx(10_001 / REVIEWS_PER_S * (1 - SPREAD))
    reviews.forget(KEY)
    assert len(reviews) == 10_000


# -- events --------------------------------------------------------------------------------------------------------


def test_events_are_left_out_where_very_much_happens_at_once_and_come_again_later() -> None:
    courtesy = Courtesy()
    assert sum(courtesy.may(10.0) for _ in range(500)) == EVENTS_AT_ONCE
    assert sum(courtesy.may(20.0) for _ in range(500)) == 10 * EVENTS_PER_S
    assert sum(courtesy.may(1e6) for _ in range(500)) == EVENTS_AT_ONCE
