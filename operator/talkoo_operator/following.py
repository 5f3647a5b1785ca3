"""What wakes a TrainingTask besides the API server: the ledger's events about its task, and its nodes' progress."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from talkoo_api.ledger.v1 import state_pb2

from talkoo.client_async import AsyncClient
from talkoo.watching import concerns
from talkoo_core.errors import TalkooError
from talkoo_operator.queue import Key
from talkoo_operator.status import Progress
from talkoo_operator.wire import progress_of

log = logging.getLogger(__name__)
MAX_STREAMS = 64
"""Tasks whose nodes' progress is followed at once; the others show committed segments."""
PROGRESS_EVERY_S = 2.0
NAMES_FOR_S = 10.0
RECONNECT_S = 2.0


class Following:
    """Ids of tasks to keys of objects, the newest progress of each, and who is to be woken."""

    def __init__(self, wake: Callable[[Key], None]) -> None:
        self._wake = wake
        self._keys: dict[str, Key] = {}
        self._ids: dict[Key, str] = {}
        self._progress: dict[Key, Progress] = {}
        self._streams: dict[Key, asyncio.Task[None]] = {}
        self._names: dict[str, str] = {}
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
        self._keys.pop(self._ids.pop(key, ""), None)

    def progress(self, key: Key) -> Progress | None:
        return self._progress.get(key)

    async def names(self, client: AsyncClient) -> dict[str, str]:
        """Of all nodes by id, some seconds old at most."""
        if time.monotonic() - self._names_at > NAMES_FOR_S:
            self._names = {node.id: node.name for node in await client.nodes()}
            self._names_at = time.monotonic()
        return self._names

    async def run(self, client: AsyncClient) -> None:
        """Follow the ledger for ever. What happened before is found by looking at each object once at the start."""
        async for block in client.ledger.follow():
            for event in block.events:
                for task_id in [event.subject, *(a.value for a in event.attributes if a.key == "task")]:
                    key = self._keys.get(task_id)
                    if key is not None and concerns(event, task_id):
                        self._wake(key)

    def _stop(self, key: Key) -> None:
        self._progress.pop(key, None)
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
                        self._progress[key] = progress_of(update)
                    if time.monotonic() - woken > PROGRESS_EVERY_S:
                        woken = time.monotonic()
                        self._wake(key)
            except TalkooError as error:
                log.debug("progress of %s: %s", task_id, error)
            await asyncio.sleep(RECONNECT_S)
