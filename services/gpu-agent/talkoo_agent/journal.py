"""A bounded list of things said, which readers may follow: a task's log lines, its progress."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")

KEPT_ENTRIES = 2_000
"""Per task; a reader who falls further behind misses the oldest."""
KEPT_TASKS = 64


class Journal(Generic[T]):
    def __init__(self, kept: int = KEPT_ENTRIES) -> None:
        self._entries: deque[T] = deque(maxlen=kept)
        self._written = 0
        self._closed = False
        self._changed = asyncio.Event()

    def write(self, entry: T) -> None:
        self._entries.append(entry)
        self._written += 1
        self._wake()

    def close(self) -> None:
        """Nothing more comes: readers end after the last entry."""
        self._closed = True
        self._wake()

    def reopen(self) -> None:
        self._closed = False

    async def read(self, *, follow: bool, tail: int = 0) -> AsyncIterator[T]:
        """Entries kept (the last `tail`, 0: all), then, with `follow`, those that come until the journal is closed."""
        kept = len(self._entries)
        position = self._written - (min(tail, kept) if tail else kept)
        while True:
            changed = self._changed
            position = max(position, self._written - len(self._entries))
            while position < self._written:
                entry = self._entries[position - (self._written - len(self._entries))]
                position += 1
                yield entry
                position = max(position, self._written - len(self._entries))
            if not follow or self._closed:
                return
            if self._changed is changed and position == self._written:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Journals(Generic[T]):
    """One journal for each of the latest tasks."""

    def __init__(self) -> None:
        self._by_task: OrderedDict[str, Journal[T]] = OrderedDict()

    def of(self, task_id: str) -> Journal[T]:
        """The task's journal, made when there is none; the oldest gives way beyond `KEPT_TASKS`."""
        if task_id not in self._by_task:
            self._by_task[task_id] = Journal()
            if len(self._by_task) > KEPT_TASKS:
                _, oldest = self._by_task.popitem(last=False)
                oldest.close()
        self._by_task.move_to_end(task_id)
        return self._by_task[task_id]

    def known(self, task_id: str) -> Journal[T] | None:
        return self._by_task.get(task_id)
