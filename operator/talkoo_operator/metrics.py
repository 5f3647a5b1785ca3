"""What the operator tells Prometheus; docs/monitoring.md explains each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from talkoo_runtime.metrics import before_scrape, counter, gauge, histogram

LEADER = gauge("talkoo_operator_leader", "1 while this replica holds the Lease.")
RECONCILES = counter(
    "talkoo_operator_reconciles_total", "Looks at an object, by kind and by outcome: ok, failed.", ["kind", "outcome"]
)
RECONCILE_SECONDS = histogram("talkoo_operator_reconcile_seconds", "Time of one look at an object.", ["kind"])
QUEUE_DEPTH = gauge("talkoo_operator_queue_depth", "Objects that wait to be looked at, or are.", ["kind"])
WATCH_AGE = gauge("talkoo_operator_watch_age_seconds", "Time since the leader has last seen the cluster's objects.")
OBJECTS = gauge(
    "talkoo_operator_objects", "Objects by kind and phase, as the leader's watch has them.", ["kind", "phase"]
)
TASK, NODE = "TrainingTask", "GPUNode"
NO_PHASE = "None"
"""Of an object that nobody has looked at yet."""

Key = tuple[str, str]


def watch_freshness(age_s: Callable[[], float]) -> None:
    before_scrape(lambda: WATCH_AGE.set(age_s()))


def watch_queue(kind: str, depth: Callable[[], int]) -> None:
    before_scrape(lambda: QUEUE_DEPTH.set(depth(), kind=kind))


class Phases:
    """The phase of every object that a watch has told of."""

    def __init__(self) -> None:
        self._phases: dict[tuple[str, Key], str] = {}
        before_scrape(self._read)

    def heard(self, kind: str, key: Key, change: str | None, body: Mapping[str, Any]) -> None:
        """Of a watch; `change` is ADDED, MODIFIED, DELETED, or None for what was listed at its begin."""
        if change == "DELETED":
            self._phases.pop((kind, key), None)
        else:
            self._phases[kind, key] = _phase(body.get("status") or {})

    def keep(self, kind: str, keys: Collection[Key]) -> None:
        """What was not listed is gone, though no watch has said so."""
        self._phases = {known: phase for known, phase in self._phases.items() if known[0] != kind or known[1] in keys}

    def _read(self) -> None:
        counts = Counter((kind, phase) for (kind, _), phase in list(self._phases.items()))
        OBJECTS.clear()
        for (kind, phase), count in counts.items():
            OBJECTS.set(count, kind=kind, phase=phase)


def _phase(status: Mapping[str, Any]) -> str:
    """GPUNodes have no phase; what counts of them is whether they have joined."""
    joined = next((c.get("status") for c in status.get("conditions", ()) if c.get("type") == "Joined"), None)
    if joined is not None:
        return "Joined" if joined == "True" else "NotJoined"
    return str(status.get("phase") or NO_PHASE)
