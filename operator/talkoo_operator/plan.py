"""What to do next for a TrainingTask: one pure decision, taken again after each step and each event.

The object's stored status says what was done; the ledger says what became of it. Nothing else is remembered, so it does
not matter which replica decides, or after which crash.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FINALIZER = "talkoo.dev/ledger"
RELEASE_AFTER_S = 120.0
"""A deleted object whose ledger does not answer is let go then: no namespace hangs because a chain does."""
ENDED = frozenset({"Succeeded", "Failed", "Cancelled"})


class Do(enum.Enum):
    """The next step."""

    CLAIM = "add the finalizer"
    HOLD = "say that it is suspended"
    SUBMIT = "prepare, sign, record and send the transaction that creates the task"
    RESUME = "bring the recorded transaction to its end"
    FOLLOW = "read the task from the ledger and write what it says"
    END = "write down why the task is to be cancelled, or that it has ended before it was sent"
    CANCEL = "cancel the task, so that what is left in escrow returns"
    REGISTER = "make the ModelVersion object"
    RELEASE = "remove the finalizer"
    EXPIRE = "delete the object: its time after the end is over"
    REST = "nothing until something changes"


@dataclass(frozen=True, slots=True)
class Seen:
    """A TrainingTask as the API server has it. Times are seconds from now; None: never."""

    generation: int
    finalizer: bool
    deleted_for_s: float | None
    """None: not deleted."""
    suspended: bool
    expires_in_s: float | None
    """Until `ttlSecondsAfterFinished` has passed; None: never, or not ended."""
    status: Mapping[str, Any]
    cancelled: bool = False
    deadline_in_s: float | None = None
    retry_in_s: float | None = None
    """Nothing is sent before."""

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", ""))

    @property
    def task_id(self) -> str:
        return str(self.status.get("taskId", ""))

    @property
    def recorded(self) -> str:
        """The signed transaction, base64."""
        return str(self.status.get("submission", {}).get("transaction", ""))

    @property
    def ending(self) -> str:
        """Why it is being cancelled on the ledger."""
        return str(self.status.get("ending", ""))

    @property
    def unsettled(self) -> bool:
        """It has ended, and some of its tokens are still in escrow."""
        return bool(self.task_id) and bool(self.status.get("unsettled"))

    @property
    def unplaced(self) -> bool:
        """It waits on the ledger for its first placement: nothing is lost when it is withdrawn."""
        return self.phase == "Pending" and self.status.get("attempt") == 0


@dataclass(frozen=True, slots=True)
class Step:
    """`reason` is what a person reads; for `END` it is the word for the status. `again_s`: look again then."""

    do: Do
    reason: str
    again_s: float | None = None


def next_step(seen: Seen) -> Step:
    """The order is the task's life; deletion comes before everything else."""
    if seen.deleted_for_s is not None:
        return _leaving(seen)
    if seen.phase in ENDED:
        return _after_the_end(seen)
    if not seen.finalizer:
        return Step(Do.CLAIM, "a deletion must find its way to the ledger")
    if seen.task_id:
        return _on_the_ledger(seen)
    if seen.recorded:
        return Step(Do.RESUME, "a transaction was signed; whether it is final only the ledger knows")
    return _before_the_ledger(seen)


def _on_the_ledger(seen: Seen) -> Step:
    if seen.ending:
        return Step(Do.CANCEL, seen.ending)
    why = _why_end(seen)
    if not why and seen.suspended and seen.unplaced:
        why = "Suspended"
    if why:
        return Step(Do.END, why)
    return Step(Do.FOLLOW, "the task stands on the ledger", again_s=seen.deadline_in_s)


def _before_the_ledger(seen: Seen) -> Step:
    why = _why_end(seen)
    if why:
        return Step(Do.END, why)
    if seen.suspended:
        return Step(Do.HOLD, "spec.suspend is true")
    if seen.retry_in_s is not None and seen.retry_in_s > 0 and not _changed(seen):
        soonest = min(seen.retry_in_s, seen.deadline_in_s or seen.retry_in_s)
        return Step(Do.REST, "it is tried again when status.retryAt has come", again_s=soonest)
    return Step(Do.SUBMIT, "nothing was sent yet")


def _why_end(seen: Seen) -> str:
    if seen.cancelled:
        return "Cancelled"
    if seen.deadline_in_s is not None and seen.deadline_in_s <= 0:
        return "DeadlineExceeded"
    return ""


def _leaving(seen: Seen) -> Step:
    if not seen.finalizer:
        return Step(Do.REST, "the API server removes the object")
    if seen.deleted_for_s is not None and seen.deleted_for_s > RELEASE_AFTER_S:
        return Step(Do.RELEASE, f"the ledger was not reached for {RELEASE_AFTER_S:.0f} s")
    if seen.phase in ENDED:
        return Step(Do.RELEASE, "the task has ended")
    if seen.task_id:
        return Step(Do.CANCEL, "its object was deleted")
    if seen.recorded:
        return Step(Do.RESUME, "a transaction was signed; if it is final, its task must be cancelled")
    return Step(Do.RELEASE, "nothing was ever sent")


def _after_the_end(seen: Seen) -> Step:
    version = seen.status.get("modelVersion")
    if version and seen.status.get("registeredModel") != version:
        return Step(Do.REGISTER, f"{version} is on the ledger")
    if seen.expires_in_s is not None and seen.expires_in_s <= 0:
        return Step(Do.EXPIRE, "spec.ttlSecondsAfterFinished has passed")
    if seen.unsettled:
        return Step(Do.FOLLOW, "validators still judge what was trained; then the rest of the escrow returns")
    if seen.expires_in_s is None:
        return Step(Do.RELEASE if seen.finalizer else Do.REST, "the task has ended")
    return Step(Do.REST, "the task has ended", again_s=seen.expires_in_s)


def _changed(seen: Seen) -> bool:
    """The specification is another than the one that was refused."""
    return seen.status.get("observedGeneration") != seen.generation
