"""Whether the watches still tell what happens: each list says what a living watch must have told by now.

A watch may end in silence while its process lives: its credentials were revoked, or its connection is half open. Any
object that changed is the probe: the list has its new version, and the watch did not tell it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


class Freshness:
    """`now`: seconds of a clock that only goes forward."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._told: dict[tuple[str, str], int] = {}
        """By kind and uid: the newest version that the watch has told."""
        self._owed: dict[tuple[str, str], tuple[int, float]] = {}
        """Versions that were listed and not told, and since when."""

    def told(self, plural: str, metadata: Mapping[str, Any], *, gone: bool = False) -> None:
        """By a watch."""
        key = (plural, str(metadata["uid"]))
        version = int(metadata["resourceVersion"])
        if gone:
            self._told.pop(key, None)
            self._owed.pop(key, None)
            return
        self._told[key] = max(version, self._told.get(key, 0))
        if key in self._owed and self._owed[key][0] <= version:
            del self._owed[key]

    def listed(self, plural: str, objects: Iterable[Mapping[str, Any]]) -> None:
        """All of one kind, as a list has them."""
        there, newest = set(), 0
        for each in objects:
            key = (plural, str(each["metadata"]["uid"]))
            there.add(key)
            version = int(each["metadata"]["resourceVersion"])
            newest = max(newest, version)
            if version > self._told.get(key, 0):
                self._owed.setdefault(key, (version, self._now()))
        for known in [key for key in self._owed if key[0] == plural and key not in there]:
            del self._owed[known]
        # One that is newer than the whole list came after it, and the watch was quicker: it is not forgotten.
        for known in [k for k, told in self._told.items() if k[0] == plural and k not in there and told <= newest]:
            del self._told[known]

    def behind(self) -> tuple[float, str]:
        """Seconds for which the slowest watch owes something, and the kind that it watches; (0, '') if none does."""
        if not self._owed:
            return 0.0, ""
        (plural, _), (_, since) = min(self._owed.items(), key=lambda entry: entry[1][1])
        return self._now() - since, plural
