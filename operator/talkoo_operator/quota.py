"""What a namespace's tasks may cost, and who of those that wait goes first. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from talkoo_core.amounts import format_tlk
from talkoo_core.errors import InsufficientFunds
from talkoo_core.ids import born_id
from talkoo_operator.queue import Key
from talkoo_runtime.transactions import transaction_hash

LIMIT_ANNOTATION = "talkoo.dev/spend-limit"
"""On a Namespace, which its users may not edit: an amount such as `200 TLK`."""
QUOTA, HOPELESS, LOWER_PRIORITY = "quota_exceeded", "quota_too_small", "lower_priority"
WAITS_ITS_TURN = frozenset({QUOTA, "balance_too_small", "insufficient_funds"})
"""Errors that tokens or the end of other tasks cure; a task of less priority does not go before one that waits so."""


def check_quota(namespace: str, limit_utlk: int, held: Iterable[tuple[int, int]], budget_utlk: int) -> None:
    """Raises InsufficientFunds. `held`: what each task of the namespace's account has in escrow and has spent."""
    used_utlk = sum(escrow + spent for escrow, spent in held)
    if budget_utlk > limit_utlk:
        raise InsufficientFunds(
            f"spec.budget of {format_tlk(budget_utlk)} is more than the {format_tlk(limit_utlk)} that tasks of the "
            f"namespace {namespace} may cost together; lower it, or ask your administrator to raise {LIMIT_ANNOTATION}",
            code=HOPELESS,
        )
    if used_utlk + budget_utlk > limit_utlk:
        raise InsufficientFunds(
            f"tasks of the namespace {namespace} have {format_tlk(used_utlk)} spent or in escrow of the "
            f"{format_tlk(limit_utlk)} that they may cost together; a budget of {format_tlk(budget_utlk)} does not "
            "fit beside it: wait until escrow returns, or ask your administrator to raise "
            f"{LIMIT_ANNOTATION}",
            code=QUOTA,
        )


class Waiting:
    """TrainingTasks that wait for tokens or quota, with their priority; known again after a restart by trying each."""

    def __init__(self) -> None:
        self._priorities: dict[Key, int] = {}

    def add(self, key: Key, priority: int) -> None:
        self._priorities[key] = priority

    def remove(self, key: Key) -> None:
        self._priorities.pop(key, None)

    def before(self, key: Key, priority: int) -> Key | None:
        """One of the same namespace with more priority that waits, or None."""
        return next((k for k, p in self._priorities.items() if k[0] == key[0] and k != key and p > priority), None)


@dataclass(frozen=True, slots=True)
class Held:
    """What a namespace's tasks hold, as somebody has read it."""

    began: int
    """Which reading it was."""
    recorded: Mapping[str, tuple[bytes, int]]
    """Signed transactions by name of their object, each with its budget: they may be final, or become it."""
    on_ledger: Mapping[str, tuple[int, int]]
    """In escrow and spent, by task."""


class Reservation:
    """A budget that is on its way to the ledger."""

    def __init__(self, budget_utlk: int) -> None:
        self.budget_utlk = budget_utlk
        self.task_id = ""
        """What the task will be called; empty until its transaction is signed."""
        self.ended_in: int | None = None
        """The reading that went on, or was the last one, when it was no longer on its way."""

    def signed(self, transaction: bytes) -> None:
        """From now on it may become final, whatever happens to us."""
        self.task_id = task_id_of(transaction)


class Reserved:
    """Budgets of one namespace that a reading may not have seen. Each counts exactly once: there or here."""

    def __init__(self) -> None:
        self._readings = 0
        self._there: list[Reservation] = []

    def begin(self) -> int:
        """A reading begins. Of two the later begins when the earlier has ended, so who waited for that has used it."""
        self._readings += 1
        self._there = [r for r in self._there if r.ended_in is None or r.ended_in >= self._readings - 1]
        return self._readings

    @contextlib.contextmanager
    def reserve(self, budget_utlk: int) -> Iterator[Reservation]:
        made = Reservation(budget_utlk)
        self._there.append(made)
        try:
            yield made
        finally:
            made.ended_in = self._readings
            if not made.task_id:
                self._there.remove(made)  # nothing was signed

    def with_held(self, held: Held, besides: str) -> list[tuple[int, int]]:
        """In escrow and spent of each task, for `check_quota`; `besides`: the object that is about to be submitted."""
        unseen = [r for r in self._there if r.ended_in is None or r.ended_in >= held.began]
        counted = {r.task_id: (r.budget_utlk, 0) for r in unseen if r.task_id}
        for name, (transaction, budget_utlk) in held.recorded.items():
            if name != besides:
                counted[task_id_of(transaction)] = budget_utlk, 0
        counted |= held.on_ledger  # which knows best
        return [*counted.values(), *((r.budget_utlk, 0) for r in unseen if not r.task_id)]


def task_id_of(transaction: bytes) -> str:
    """Of the task that a signed transaction creates."""
    return born_id("task", transaction_hash(transaction))
