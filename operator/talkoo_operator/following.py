"""What wakes a TrainingTask besides the API server: the ledger's events about its task, and its nodes' progress."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from talkoo_api.ledger.v1 import state_pb2

from talkoo.client_async import AsyncClient
from talkoo.watching import concerns
from talkoo_core.errors import TalkooError
from talkoo_operator.queue import Key
from talkoo_operator.shared import Shared
from talkoo_operator.status import Progress
from talkoo_operator.wire import progress_of

log = logging.getLogger(__name__)
MAX_STREAMS = 64
"""Tasks whose nodes' progress is followed at once; the others show committed segments."""
PROGRESS_EVERY_S = 2.0
NAMES_FOR_S = 10.0
HEAR_WITHIN_S = 10.0
RECORDS_FOR_S = 60.0
"""What was read of all tasks at once is good for one look at each, for so long."""
PACE_OVER_S, PACE_AFTER_S = 60.0, 2.0
"""The pace is that of the last minute; of less than two seconds it is none."""
RECONNECT_S = 2.0
MAX_POINTS = 256


class Pace:
    """Steps of one attempt over time."""

    def __init__(self) -> None:
        self._attempt = 0
        self._points: deque[tuple[float, int]] = deque(maxlen=MAX_POINTS)

    def seen(self, attempt: int, step: int, now_s: float) -> float:
        """Steps per second over the last minute; 0 while too little is known."""
        if attempt != self._attempt:
            self._attempt = attempt
            self._points.clear()
        if not self._points or step > self._points[-1][1]:
            self._points.append((now_s, step))
        while len(self._points) > 2 and now_s - self._points[0][0] > PACE_OVER_S:
            self._points.popleft()
        since, first = self._points[0]
        return (step - first) / (now_s - since) if now_s - since >= PACE_AFTER_S else 0.0


class Following:
    """Ids of tasks to keys of objects, the newest progress of each, and who is to be woken."""

    def __init__(self, wake: Callable[[Key], None], shared: Shared) -> None:
        self._wake = wake
        self._shared = shared
        self._heard = asyncio.Event()
        """A block was heard: no event after it is missed."""
        self._records: dict[str, state_pb2.Task] = {}
        self._records_at = float("-inf")
        self._told: set[str] = set()
        """Tasks of which an event was heard since that reading began."""
        self._keys: dict[str, Key] = {}
        self._ids: dict[Key, str] = {}
        self._progress: dict[Key, Progress] = {}
        self._streams: dict[Key, asyncio.Task[None]] = {}
        self._paces: dict[Key, Pace] = {}
        self._busy_until: dict[Key, tuple[tuple[str, ...], float]] = {}
        self._nodes: dict[str, state_pb2.Node] = {}
        self._names_at = float("-inf")

    def add(self, key: Key, task: state_pb2.Task, client: AsyncClient) -> None:
        """Called whenever the task was read."""
        self._keys[task.id] = key
        self._ids[key] = task.id
        running = task.phase == state_pb2.TASK_PHASE_RUNNING
        if running and key not in self._streams and len(self._streams) < MAX_STREAMS:
            self._streams[key] = asyncio.create_task(self._read(key, task.id, client), name=f"progress of {task.id}")
        elif not running:
            self._stop(key)

    def forget(self, key: Key) -> None:
        self._stop(key)
        self._busy_until.pop(key, None)
        self._keys.pop(self._ids.pop(key, ""), None)

    def progress(self, key: Key) -> Progress | None:
        return self._progress.get(key)

    async def nodes(self, client: AsyncClient) -> dict[str, state_pb2.Node]:
        """All by id, some seconds old at most."""
        if time.monotonic() - self._names_at > NAMES_FOR_S:
            self._nodes = {node.id: node for node in await self._shared.read("nodes", client.nodes)}
            self._names_at = time.monotonic()
        return self._nodes

    async def read_all(self, client: AsyncClient) -> None:
        """One reading for many looks that are to come, where each would ask for its own task."""
        async with asyncio.timeout(HEAR_WITHIN_S):
            await self._heard.wait()
        self._records.clear()
        self._records_at = time.monotonic()
        self._told = set()
        read = {task.id: task for task in await client.tasks()}
        self._records = {task_id: task for task_id, task in read.items() if task_id not in self._told}

    async def task(self, task_id: str, client: AsyncClient) -> state_pb2.Task:
        """As the ledger has it. Raises NotFound."""
        known = self._records.pop(task_id, None)
        if known is not None and time.monotonic() - self._records_at < RECORDS_FOR_S:
            return known
        return await client.ledger.task(task_id)

    def occupied(self, key: Key, workers: tuple[str, ...], until: float | None) -> None:
        """Which nodes a task of this cluster works on, and until when if that is known (seconds since 1970)."""
        if until is None or not workers:
            self._busy_until.pop(key, None)
        else:
            self._busy_until[key] = (workers, until)

    def free_at(self) -> dict[str, float]:
        """When nodes that are busy with tasks of this cluster will be free, by name."""
        return {name: until for workers, until in self._busy_until.values() for name in workers}

    async def run(self, client: AsyncClient) -> None:
        """Follow the ledger for ever. What happened before is found by looking at each object once at the start."""
        async for block in client.ledger.follow():
            self._heard.set()
            for event in block.events:
                for task_id in [event.subject, *(a.value for a in event.attributes if a.key == "task")]:
                    self._records.pop(task_id, None)
                    self._told.add(task_id)
                    key = self._keys.get(task_id)
                    if key is not None and concerns(event, task_id):
                        self._wake(key)

    def _stop(self, key: Key) -> None:
        self._progress.pop(key, None)
        self._paces.pop(key, None)
        stream = self._streams.pop(key, None)
        if stream is not None:
            stream.cancel()

    async def _read(self, key: Key, task_id: str, client: AsyncClient) -> None:
        """Progress is for the eye: a broken stream is opened again, and wakes its object at most so often."""
        woken = float("-inf")
        while True:
            try:
                async for update in client.progress(task_id):
                    known = self._progress.get(key)
                    if known is None or (update.attempt, update.step) >= (known.attempt, known.step):
                        pace = self._paces.setdefault(key, Pace()).seen(update.attempt, update.step, time.monotonic())
                        self._progress[key] = progress_of(update, pace)
                    if time.monotonic() - woken > PROGRESS_EVERY_S:
                        woken = time.monotonic()
                        self._wake(key)
            except TalkooError as error:
                log.debug("progress of %s: %s", task_id, error)
            await asyncio.sleep(RECONNECT_S)
