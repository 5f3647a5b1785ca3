"""What a TrainingTask's status says, from what the ledger and the nodes say. Pure: the time is an argument."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from talkoo_core.amounts import format_tlk

Object = dict[str, Any]
MAX_MESSAGE = 1024
SUSPENDED = "Suspended"
DEADLINE_EXCEEDED = "DeadlineExceeded"
FINAL = ("completed", "failed", "cancelled")
MAX_ESTIMATE_S = 365 * 86_400.0
REFUSED_AGAIN_S = 60.0
"""A specification that was refused is looked at again so much later: its ConfigMaps may have been corrected."""


@dataclass(frozen=True, slots=True)
class LedgerTask:
    """A task as the ledger has it. `phase`: pending, running, verifying, completed, failed, cancelled."""

    id: str
    phase: str
    attempt: int
    steps: int
    segments: int
    committed: int
    accepted: int
    discarded: int
    escrow_utlk: int
    spent_utlk: int
    workers: tuple[str, ...]
    """Names of the nodes of the present attempt, in order of rank."""
    banned: tuple[str, ...]
    failure: str
    failure_kind: str
    model_version: str
    placement_reason: str
    waits_for: str = ""
    """The scheduler's reason while the task is pending."""
    starts_at: float | None = None
    """Estimated start of a pending task, in seconds since 1970; None: unknown."""
    reporter: str = ""
    """Name of the node, or organization, that reported the failure first."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The newest word of the nodes."""

    attempt: int
    step: int
    loss: float
    samples_per_second: float
    """Of one rank."""
    stage: str
    steps_per_second: float = 0.0
    """Of the whole gang over the last minute, what lies between segments included; 0: not known yet."""


PHASES = {
    "pending": "Pending",
    "running": "Running",
    "verifying": "Verifying",
    "completed": "Succeeded",
    "failed": "Failed",
    "cancelled": "Cancelled",
}


def timestamp(seconds: float) -> str:
    """RFC 3339, as Kubernetes writes times."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def later(now: str, seconds: float) -> str:
    return timestamp(datetime.datetime.fromisoformat(now).timestamp() + seconds)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """The JSON merge patch from one status to the other; empty where they say the same. None means: absent."""
    made: Object = {}
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            inner = changes(before, after)
            if inner:
                made[name] = inner
        elif before != after:
            made[name] = after
    return made


def with_condition(
    status: Mapping[str, Any], kind: str, *, holds: bool | None, reason: str, message: str, generation: int, now: str
) -> Object:
    """The status with one condition set; its transition time changes only when its status does."""
    value = "Unknown" if holds is None else str(holds)
    conditions = [dict(condition) for condition in status.get("conditions", ())]
    known = next((condition for condition in conditions if condition["type"] == kind), None)
    since = known["lastTransitionTime"] if known is not None and known["status"] == value else now
    new = {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }
    others = [condition for condition in conditions if condition["type"] != kind]
    return {**status, "conditions": sorted([*others, new], key=lambda condition: str(condition["type"]))}


def with_ready(
    status: Mapping[str, Any], holds: bool | None, reason: str, message: str, generation: int, now: str
) -> Object:
    """Of an object that is there for what it says: whether that holds, and the same in a line."""
    made = with_condition(status, "Ready", holds=holds, reason=reason, message=message, generation=generation, now=now)
    return made | {"message": message[:MAX_MESSAGE], "observedGeneration": generation}


def waiting(status: Mapping[str, Any], reason: str, message: str, generation: int, now: str) -> Object:
    """Nothing is on the ledger yet, and why."""
    made = with_condition(status, "Funded", holds=False, reason=reason, message=message, generation=generation, now=now)
    phase = "Suspended" if reason == SUSPENDED else "Pending"
    return {
        **made,
        "phase": phase,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "observedGeneration": generation,
        "retryAt": None,
    }


def refused(status: Mapping[str, Any], message: str, generation: int, now: str) -> Object:
    """The specification cannot be submitted; a change of it is looked at again."""
    made = with_condition(
        status, "Accepted", holds=False, reason="InvalidSpec", message=message, generation=generation, now=now
    )
    return {
        **made,
        "phase": "Pending",
        "reason": "InvalidSpec",
        "message": message[:MAX_MESSAGE],
        "observedGeneration": generation,
        "retryAt": later(now, REFUSED_AGAIN_S),
    }


def held(status: Mapping[str, Any], generation: int, now: str) -> Object:
    """Suspended before anything is on the ledger."""
    words = "spec.suspend is true: nothing is on the ledger, no token is in escrow"
    made = waiting(status, SUSPENDED, words, generation, now)
    return with_condition(
        made, "Suspended", holds=True, reason="Suspended", message=words, generation=generation, now=now
    )


def with_suspension(status: Mapping[str, Any], suspended: bool, generation: int, now: str) -> Object:
    """What `spec.suspend` does to a task that stands on the ledger: nothing once it was placed, and that is said."""
    known = any(condition["type"] == "Suspended" for condition in status.get("conditions", ()))
    if not suspended and not known:
        return dict(status)
    reason, words = "NotSuspended", "spec.suspend is false"
    if suspended:
        reason = "NoPause"
        words = "the ledger has no pause: a task that was placed goes on; spec.cancel ends it and returns the rest"
    return with_condition(
        status, "Suspended", holds=False, reason=reason, message=words, generation=generation, now=now
    )


def of_task(
    status: Mapping[str, Any], task: LedgerTask, progress: Progress | None, generation: int, now: str
) -> Object:
    """The whole status of a task that stands on the ledger."""
    phase = PHASES[task.phase]
    overdue = task.phase == "cancelled" and status.get("ending") == DEADLINE_EXCEEDED
    if overdue:
        phase = "Failed"
    step = progress.step if progress is not None and task.phase == "running" else _steps_of(task, task.committed)
    if task.phase in ("verifying", "completed"):
        step = task.steps
    reason, message = _reason(task, progress)
    if overdue:
        reason, message = DEADLINE_EXCEEDED, f"spec.deadlineSeconds have passed; {message}"
    made: Object = {
        **status,
        "phase": phase,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "observedGeneration": generation,
        "retryAt": None,
        "attempt": task.attempt,
        "step": step,
        "steps": task.steps,
        "progress": f"{100 * step // task.steps}%",
        "workers": list(task.workers),
        "rejectedWorkers": list(task.banned),
        "segments": {
            "total": task.segments,
            "committed": task.committed,
            "accepted": task.accepted,
            "discarded": task.discarded,
        },
        "tokens": {"escrowed": format_tlk(task.escrow_utlk), "spent": format_tlk(task.spent_utlk)},
    }
    if progress is not None and task.phase == "running":
        made["loss"] = f"{progress.loss:.4g}"
    made |= _estimates(task, progress, step, now)
    made["unsettled"] = task.phase in FINAL and task.escrow_utlk > 0
    if task.model_version:
        made["modelVersion"] = task.model_version
    if phase in ("Succeeded", "Failed", "Cancelled") and "finishedAt" not in made:
        made["finishedAt"] = now
    if task.phase == "running" and "startedAt" not in made:
        made["startedAt"] = now
    for kind, holds, why, words in _conditions(task, reason, message):
        made = with_condition(made, kind, holds=holds, reason=why, message=words, generation=generation, now=now)
    return made


def estimated_start(least: int, fit: int, busy: Sequence[str], free_at: Mapping[str, float]) -> float | None:
    """When `least` nodes will be free: `fit` are, `busy` ones would fit. None where that is not known, or is now."""
    known = sorted(free_at[name] for name in busy if name in free_at)
    missing = least - fit
    return known[missing - 1] if 0 < missing <= len(known) else None


def _estimates(task: LedgerTask, progress: Progress | None, step: int, now: str) -> Object:
    """Absent where nothing is known; to the second, so that a look without news changes nothing."""
    start = end = None
    if task.phase == "pending" and task.starts_at is not None:
        start = timestamp(task.starts_at)
    if task.phase == "running" and progress is not None and progress.steps_per_second > 0:
        left_s = (task.steps - step) / progress.steps_per_second
        end = timestamp(datetime.datetime.fromisoformat(now).timestamp() + min(left_s, MAX_ESTIMATE_S))
    return {"estimatedStart": start, "estimatedEnd": end}


def _reason(task: LedgerTask, progress: Progress | None) -> tuple[str, str]:
    match task.phase:
        case "pending":
            return (
                "Preempted" if task.attempt else "WaitingForPlacement"
            ), task.waits_for or "no scheduler has spoken yet"
        case "running":
            stage = progress.stage if progress is not None else "starting"
            return "Training", f"attempt {task.attempt} on {', '.join(task.workers)}: {stage}"
        case "verifying":
            return "WaitingForVerdicts", f"{task.accepted} of {task.segments} segments are accepted"
        case "completed":
            return "Completed", f"{task.model_version} is registered, {format_tlk(task.spent_utlk)} were paid"
        case "cancelled":
            return "Cancelled", f"cancelled after {format_tlk(task.spent_utlk)} were paid"
    return _camel(task.failure_kind) or "Failed", task.failure or "the ledger names no reason"


def _conditions(task: LedgerTask, reason: str, message: str) -> list[tuple[str, bool | None, str, str]]:
    """Type, status, reason, message."""
    ended = task.phase in FINAL
    running = task.phase == "running"
    placed = task.phase in ("running", "verifying", "completed")
    verified = task.accepted == task.segments
    return [
        ("Accepted", True, "Submitted", f"{task.id} stands on the ledger"),
        ("Funded", True, "InEscrow", f"{format_tlk(task.escrow_utlk)} in escrow, {format_tlk(task.spent_utlk)} spent"),
        ("Placed", placed, "Placed" if placed else reason, task.placement_reason if placed else message),
        ("Running", running, reason, message),
        (
            "Verified",
            True if verified else False if ended else None,
            "AllSegmentsAccepted" if verified else "SegmentsOpen",
            f"{task.accepted} of {task.segments} segments accepted, {task.discarded} discarded",
        ),
        (
            "Succeeded",
            True if task.phase == "completed" else False if ended else None,
            reason,
            message,
        ),
    ]


def _steps_of(task: LedgerTask, segments: int) -> int:
    return min(task.steps, segments * -(-task.steps // max(task.segments, 1)))


def _camel(word: str) -> str:
    return "".join(part.capitalize() for part in word.split("_"))
