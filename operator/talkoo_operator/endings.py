"""How a TrainingTask ends, or begins again: set aside, retried, failed and where. Pure: the time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from talkoo_operator.status import DEADLINE_EXCEEDED, MAX_MESSAGE, SUSPENDED, later, waiting, with_condition

Object = dict[str, Any]
MAX_PREVIOUS = 20
MAX_LOG_LINES, MAX_LINE = 20, 400
MAX_BACKOFF_S = 3600.0
OF_ONE_TASK = (
    "taskId", "submission", "attempt", "step", "steps", "progress", "loss", "workers", "rejectedWorkers", "segments",
    "tokens", "startedAt", "finishedAt", "estimatedStart", "estimatedEnd", "ending", "unsettled",
)  # fmt: skip
"""What a status says about the task on the ledger that it has now; the next one begins without it."""


def ended_before_the_ledger(status: Mapping[str, Any], reason: str, generation: int, now: str) -> Object:
    """Cancelled, or too late, while nothing stood on the ledger."""
    words = {
        "Cancelled": "spec.cancel is true; nothing was on the ledger",
        DEADLINE_EXCEEDED: f"spec.deadlineSeconds have passed; it waited for: {status.get('message', 'its turn')}",
    }[reason]
    made: Object = {
        **status,
        "phase": "Cancelled" if reason == "Cancelled" else "Failed",
        "reason": reason,
        "message": words[:MAX_MESSAGE],
        "observedGeneration": generation,
        "finishedAt": now,
        "retryAt": None,
    }
    return with_condition(made, "Succeeded", holds=False, reason=reason, message=words, generation=generation, now=now)


def begun_again(
    old: Mapping[str, Any], made: Mapping[str, Any], spec: Mapping[str, Any], generation: int, now: str
) -> Object:
    """`made` as it is, or, where the task was withdrawn or is to be retried, without its task on the ledger."""
    if made["phase"] == "Cancelled" and old.get("ending") == SUSPENDED:
        status = _set_aside(made, now)
        words = "it was withdrawn before its first placement; its escrow has returned"
        return waiting(status, "Withdrawn", words, generation, now)
    retried = int(old.get("retried", 0))
    failed = made["phase"] == "Failed" and made["reason"] != DEADLINE_EXCEEDED
    if not failed or retried >= int(spec.get("retries", 0)) or spec.get("cancel"):
        return dict(made)
    pause_s = backoff_s(float(spec.get("retryBackoffSeconds", 30)), retried)
    words = f"failed ({made['reason']}: {made['message']}); retry {retried + 1} of {spec['retries']} in {pause_s:.0f} s"
    status = waiting(_set_aside(made, now), "Backoff", words, generation, now)
    for kind in ("Placed", "Running", "Verified", "Succeeded"):
        holds = None if kind in ("Verified", "Succeeded") else False
        status = with_condition(
            status, kind, holds=holds, reason="Backoff", message=words, generation=generation, now=now
        )
    return status | {"retried": retried + 1, "retryAt": later(now, pause_s)}


def backoff_s(first_s: float, retried: int) -> float:
    """Doubles with each retry, up to an hour, or to the first pause where that is longer."""
    return min(first_s * 2.0**retried, max(MAX_BACKOFF_S, first_s))


def with_failure(status: Mapping[str, Any], worker: str, kind: str, logs: Sequence[str]) -> Object:
    """Where it failed: the worker, the step, and the last lines of its nodes."""
    failure = {
        "kind": kind,
        "worker": worker,
        "step": status.get("step", 0),
        "logs": [line[:MAX_LINE] for line in logs[-MAX_LOG_LINES:]],
    }
    return {**status, "failure": failure}


def lost(status: Mapping[str, Any], message: str, generation: int, now: str) -> Object:
    """The ledger that held the task is no more: another chain began in its place."""
    made: Object = {
        **status,
        "phase": "Failed",
        "reason": "LedgerReplaced",
        "message": message[:MAX_MESSAGE],
        "observedGeneration": generation,
        "finishedAt": now,
        "unsettled": None,
    }
    return with_condition(
        made, "Succeeded", holds=False, reason="LedgerReplaced", message=message, generation=generation, now=now
    )


def _set_aside(made: Mapping[str, Any], now: str) -> Object:
    known = {
        "taskId": made.get("taskId", ""),
        "reason": made["reason"],
        "message": made["message"],
        "spent": made.get("tokens", {}).get("spent", ""),
        "ended": now,
    }
    kept = {name: value for name, value in made.items() if name not in OF_ONE_TASK}
    return kept | {"previous": [*made.get("previous", ()), known][-MAX_PREVIOUS:]}
