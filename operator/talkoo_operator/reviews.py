"""When a task that waits on the ledger is looked at though nothing is known to have happened. Pure but for its dice.

Why a task waits is known to the scheduler alone, which tells nobody: it has to be asked. It is asked soon until it has
spoken, then now and then; all tasks together ask at a bounded pace, however many wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from talkoo_operator.queue import Key

REVIEW_S = 15.0
"""Between two looks at one task, at least."""
REVIEWS_PER_S = 8
"""Of all tasks together: the more there are, the more rarely each is looked at."""
FIRST_S = 0.5
SPREAD = 0.2
"""Pauses differ by so much to either side, so that what began together does not stay together."""


@dataclass(slots=True)
class _Asked:
    attempt: int
    unanswered: int
    due_at: float


class Reviews:
    """`now`: seconds of a clock that only goes forward; `dice`: a number from 0 to 1."""

    def __init__(self, now: Callable[[], float], dice: Callable[[], float]) -> None:
        self._now = now
        self._dice = dice
        self._asked: dict[Key, _Asked] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def forget(self, key: Key) -> None:
        self._asked.pop(key, None)

    def due(self, key: Key, attempt: int, told: bool) -> bool:
        """Whether the scheduler is to be asked now. `told`: the status has what it said about this attempt.

        After a restart what stands in the status is good enough for a while: its time comes like that of the others.
        """
        known = self._asked.get(key)
        if known is not None and known.attempt == attempt:
            return not told or self._now() >= known.due_at
        self._asked[key] = _Asked(attempt, 0, self._now() + self._dice() * self._period_s())
        return not told

    def answered(self, key: Key, attempt: int, answered: bool) -> None:
        """It was asked; `answered`: it had something to say."""
        known = self._asked.setdefault(key, _Asked(attempt, 0, 0.0))
        known.attempt = attempt
        known.unanswered = 0 if answered else known.unanswered + 1
        pause_s = self._period_s() if answered else min(FIRST_S * 2.0 ** (known.unanswered - 1), self._period_s())
        known.due_at = self._now() + pause_s * (1.0 - SPREAD + 2 * SPREAD * self._dice())

    def pause_s(self, key: Key) -> float:
        """Until the next look; of one that is not asked about, the usual pause."""
        known = self._asked.get(key)
        return self._period_s() if known is None else max(known.due_at - self._now(), 0.0)

    def _period_s(self) -> float:
        return max(REVIEW_S, len(self._asked) / REVIEWS_PER_S)
