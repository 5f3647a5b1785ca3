"""What a namespace's tasks may cost, and who of those that wait goes first. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from talkoo_core.amounts import format_tlk
from talkoo_core.errors import InsufficientFunds
from talkoo_operator.queue import Key

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
