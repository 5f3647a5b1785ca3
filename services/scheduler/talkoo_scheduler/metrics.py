"""What a scheduler tells Prometheus; docs/monitoring.md explains each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection

from talkoo_core.errors import TalkooError
from talkoo_runtime.etcd import EtcdStore
from talkoo_runtime.metrics import before_scrape, counter, exposed, gauge, histogram

LEADER = gauge("talkoo_scheduler_leader", "1 while this scheduler leads.")
LEADER_KNOWN = gauge(
    "talkoo_scheduler_leader_known", "1 while etcd names a leader, of whichever organization, and can be asked."
)
LOOK_FOR_LEADER_S = 10.0
WAITING = gauge(
    "talkoo_scheduler_tasks_waiting",
    "Tasks that wait for a placement, by what most nodes lack; of the leader only.",
    ["reason"],
    max_series=32,
)
LONGEST_WAIT = gauge(
    "talkoo_scheduler_longest_wait_seconds", "How long the leader has seen the task wait that waits longest."
)
PLACED = counter("talkoo_scheduler_placed_total", "Placements that the ledger took.")
REFUSED = counter(
    "talkoo_scheduler_refused_total", "Placements that the ledger refused, by family of the error.", ["family"]
)
DECISION_SECONDS = histogram("talkoo_scheduler_decision_seconds", "Time to decide on one task.")
AGENTS = gauge(
    "talkoo_scheduler_agents",
    "Agents of the own organization by state: offering, or lost (its offer ran out and it had not withdrawn).",
    ["state"],
)
SHARED = gauge(
    "talkoo_scheduler_offers_shared",
    "1 while a scheduler of another cluster takes our offers; of those in share_with.",
    ["scheduler"],
    max_series=32,
)
LOST_KEPT_S = 24 * 3600.0
"""A lost agent counts for so long."""
MAX_AGENTS = 4_096


async def look_for_leader(store: EtcdStore, key: str) -> None:
    """For ever, where somebody keeps the metric."""
    while exposed():
        try:
            LEADER_KNOWN.set(bool(await store.leader(key)))
        except TalkooError:
            LEADER_KNOWN.set(0)
        await asyncio.sleep(LOOK_FOR_LEADER_S)


class WaitingTasks:
    """Since when and why tasks wait, as the leader sees it."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[float, str]] = {}
        before_scrape(self._read)

    def waits(self, task_id: str, reason: str) -> None:
        since, _ = self._tasks.get(task_id, (time.monotonic(), ""))
        self._tasks[task_id] = since, reason

    def keep(self, task_ids: Collection[str]) -> None:
        """The others wait no more."""
        self._tasks = {task_id: known for task_id, known in self._tasks.items() if task_id in task_ids}

    def _read(self) -> None:
        tasks = list(self._tasks.values())
        WAITING.clear()
        for reason, count in Counter(reason for _, reason in tasks).items():
            WAITING.set(count, reason=reason)
        LONGEST_WAIT.set(time.monotonic() - min(since for since, _ in tasks) if tasks else 0.0)


class HeardAgents:
    """When each of the own agents was heard last."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._heard_at: dict[str, float] = {}
        before_scrape(self._read)

    def offered(self, node_id: str) -> None:
        if len(self._heard_at) >= MAX_AGENTS and node_id not in self._heard_at:
            return
        self._heard_at[node_id] = time.monotonic()

    def withdrew(self, node_id: str) -> None:
        self._heard_at.pop(node_id, None)

    def _read(self) -> None:
        now, lost = time.monotonic(), 0
        heard = list(self._heard_at.items())
        for node_id, at in heard:
            lost += now - at > self._ttl_s
            if now - at > LOST_KEPT_S:
                self._heard_at.pop(node_id, None)
        AGENTS.set(len(heard) - lost, state="offering")
        AGENTS.set(lost, state="lost")
