"""What a TrainingTask's status says, from what the ledger and the nodes say. Pure: the time is an argument."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from talkoo_core.amounts import format_tlk

Object = dict[str, Any]
MAX_MESSAGE = 1024
SUSPENDED = "Suspended"


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


@dataclass(frozen=True, slots=True)
class Progress:
    """The newest word of the nodes."""

    attempt: int
    step: int
    loss: float
    samples_per_second: float
    stage: str


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
    }


def of_task(
    status: Mapping[str, Any], task: LedgerTask, progress: Progress | None, generation: int, now: str
) -> Object:
    """The whole status of a task that stands on the ledger."""
    phase = PHASES[task.phase]
    step = progress.step if progress is not None and task.phase == "running" else _steps_of(task, task.committed)
    if task.phase in ("verifying", "completed"):
        step = task.steps
    reason, message = _reason(task, progress)
    made: Object = {
        **status,
        "phase": phase,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "observedGeneration": generation,
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
    if task.model_version:
        made["modelVersion"] = task.model_version
    if phase in ("Succeeded", "Failed", "Cancelled") and "finishedAt" not in made:
        made["finishedAt"] = now
    if task.phase == "running" and "startedAt" not in made:
        made["startedAt"] = now
    for kind, holds, why, words in _conditions(task, reason, message):
        made = with_condition(made, kind, holds=holds, reason=why, message=words, generation=generation, now=now)
    return made


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
    ended = task.phase in ("completed", "failed", "cancelled")
    placed = task.phase in ("running", "verifying", "completed")
    verified = task.accepted == task.segments
    return [
        ("Accepted", True, "Submitted", f"{task.id} stands on the ledger"),
        ("Funded", True, "InEscrow", f"{format_tlk(task.escrow_utlk)} in escrow, {format_tlk(task.spent_utlk)} spent"),
        ("Placed", placed, "Placed" if placed else reason, task.placement_reason if placed else message),
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
