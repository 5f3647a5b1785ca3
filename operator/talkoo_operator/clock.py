"""The time by which deadlines and deletions are counted: the API server's, so that a wrong clock here costs no task."""

from __future__ import annotations

import logging
from collections.abc import Callable
from email.utils import parsedate_to_datetime

log = logging.getLogger(__name__)
NOTABLE_S = 5.0
"""The header has whole seconds, and an answer takes its time."""


class ServerClock:
    """`local` is this machine's time in seconds since 1970; the objects' times were written by the API server's."""

    def __init__(self, local: Callable[[], float]) -> None:
        self._local = local
        self._ahead_s = 0.0

    def now(self) -> float:
        return self._local() + self._ahead_s

    def learn(self, date: str) -> None:
        """From the `Date` of an answer that has just come."""
        ahead_s = parsedate_to_datetime(date).timestamp() - self._local()
        if abs(ahead_s - self._ahead_s) < NOTABLE_S:
            return  # no jitter in what is written into statuses
        if abs(ahead_s) >= NOTABLE_S:
            log.warning(
                "this machine's clock differs from the API server's by %.0f s; the API server's counts", -ahead_s
            )
        self._ahead_s = ahead_s if abs(ahead_s) >= NOTABLE_S else 0.0
