"""The work queue: one look at a time for each object, none lost, failures with growing pauses."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from talkoo_operator import queue as module
from talkoo_operator.queue import FAIR_EVERY, Key, Lane, WorkQueue

from talkoo_core.errors import Unavailable

A, B = ("default", "a"), ("default", "b")


@contextlib.asynccontextmanager
async def running(
    work: Callable[[Key], Awaitable[float | None]], workers: int = 4, chance: Callable[[], float] = random.random
) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(work, "TrainingTask", chance)
    serving = asyncio.create_task(queue.run(workers))
    try:
        yield queue
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_woken_often_while_busy_is_looked_at_once_more() -> None:
    looks: list[Key] = []
    gate = asyncio.Event()

    async def work(key: Key) -> None:
        looks.append(key)
        await gate.wait()

    async with running(work) as queue:
        queue.wake(A)
        await until(lambda: len(looks) == 1)
        for _ in range(100):
            queue.wake(A)
        await asyncio.sleep(0)
        assert looks == [A], "never two looks at one object at a time"
        gate.set()
        await until(lambda: len(queue) == 0)
        assert looks == [A, A]


async def test_objects_are_worked_on_side_by_side() -> None:
    together = asyncio.Barrier(2)

    async def work(key: Key) -> None:
        async with asyncio.timeout(5):
            await together.wait()

    async with running(work, workers=2) as queue:
        queue.wake(A)
        queue.wake(B)
        await until(lambda: len(queue) == 0)
        assert together.n_waiting == 0


async def test_a_failure_is_tried_again_with_growing_pauses_and_stops_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(module, "RETRY_MAX_S", 0.05)
    at: list[float] = []
    others: list[Key] = []

    async def work(key: Key) -> None:
        if key == B:
            others.append(key)
            return
        at.append(asyncio.get_running_loop().time())
        if len(at) < 6:
            raise Unavailable("the ledger is away") if len(at) % 2 else RuntimeError("a fault of ours")

    async with running(work, workers=1) as queue:
        queue.wake(A)
        queue.wake(B)
        await until(lambda: len(at) == 6 and len(queue) == 0)
        pauses = [b - a for a, b in itertools.pairwise(at)]
        for pause, least in zip(pauses, (0.01, 0.02, 0.04, 0.05, 0.05), strict=True):
            assert pause >= least * module.LEAST_PART * 0.9
        assert others == [B]
        assert not queue._failures, "a success begins anew"


async def test_what_failed_together_is_not_tried_again_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST_S", 0.4)
    at: dict[Key, list[float]] = {A: [], B: []}
    chances = iter((0.0, 1.0))

    async def work(key: Key) -> None:
        at[key].append(asyncio.get_running_loop().time())
        if len(at[key]) == 1:
            raise Unavailable("too many requests")

    async with running(work, chance=lambda: next(chances)) as queue:
        queue.wake(A)
        queue.wake(B)
        await until(lambda: [len(times) for times in at.values()] == [2, 2])
        assert abs(at[B][1] - at[A][1]) >= 0.4 * (1.0 - module.LEAST_PART) * 0.9


async def test_work_may_ask_to_be_called_again_and_news_come_first() -> None:
    looks: list[float] = []

    async def work(key: Key) -> float | None:
        looks.append(asyncio.get_running_loop().time())
        return {1: 0.02, 2: 3600.0}.get(len(looks))

    async with running(work) as queue:
        queue.wake(A)
        await until(lambda: len(looks) == 2)
        assert looks[1] - looks[0] >= 0.018
        queue.wake(A)  # not after an hour
        await until(lambda: len(looks) == 3)
        assert not queue._timers


async def test_a_forgotten_object_is_not_looked_at_again() -> None:
    looks: list[Key] = []

    async def work(key: Key) -> float:
        looks.append(key)
        return 0.03

    async with running(work) as queue:
        queue.wake(A)
        await until(lambda: len(looks) == 1 and bool(queue._timers))
        queue.forget(A)
        await asyncio.sleep(0.06)
        assert looks == [A]


async def order_of(wakes: list[tuple[Key, Lane]]) -> list[Key]:
    """In which order one worker looks at keys that wait together."""
    looks: list[Key] = []

    async def work(key: Key) -> None:
        looks.append(key)

    queue = WorkQueue(work, "TrainingTask")
    for key, lane in wakes:
        queue.wake(key, lane)
    serving = asyncio.create_task(queue.run(1))
    await until(lambda: len(queue) == 0)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    return looks


async def test_news_overtake_new_objects_and_these_what_is_looked_at_now_and_then() -> None:
    wakes = [(("d", "routine"), Lane.ROUTINE), (("d", "new"), Lane.NEW), (("d", "news"), Lane.NEWS)]
    assert [name for _, name in await order_of(wakes)] == ["news", "new", "routine"]


async def test_a_key_that_waits_goes_over_to_the_more_urgent_lane_and_never_back() -> None:
    wakes = [(B, Lane.NEW), (A, Lane.ROUTINE), (A, Lane.NEWS), (A, Lane.ROUTINE)]
    assert await order_of(wakes) == [A, B], "and each is looked at once"


async def test_the_least_urgent_has_its_turn_however_much_happens() -> None:
    wakes = [(("d", "routine"), Lane.ROUTINE), *((("d", f"news-{n}"), Lane.NEWS) for n in range(50))]
    assert (await order_of(wakes)).index(("d", "routine")) < FAIR_EVERY


async def test_nothing_else_waits_for_workers_that_are_busy_with_new_objects() -> None:
    gate, looks = asyncio.Event(), list[Key]()

    async def work(key: Key) -> None:
        looks.append(key)
        if key != A:
            await gate.wait()

    queue = WorkQueue(work, "TrainingTask")
    serving = asyncio.create_task(queue.run(2, for_known=1))
    for n in range(5):
        queue.wake(("d", f"new-{n}"), Lane.NEW)
    await until(lambda: len(looks) == 2)
    queue.wake(A)
    await until(lambda: A in looks)
    queue.wake(A, Lane.ROUTINE)
    await until(lambda: looks.count(A) == 2)
    assert len(looks) == 4, "new ones wait for the other workers"
    gate.set()
    await until(lambda: len(queue) == 0)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_a_look_whose_time_has_come_is_overtaken_by_news() -> None:
    looks, gate = list[Key](), asyncio.Event()

    async def work(key: Key) -> float | None:
        looks.append(key)
        if key == ("d", "long"):
            await gate.wait()
        return 0.01 if looks == [A] else None

    async with running(work, workers=1) as queue:
        queue.wake(A)
        await until(lambda: looks == [A])
        queue.wake(("d", "long"))
        await until(lambda: len(looks) == 2 and not queue._timers)  # A's time has come while the worker is busy
        queue.wake(B)
        gate.set()
        await until(lambda: len(queue) == 0)
        assert looks == [A, ("d", "long"), B, A]
