"""The newest of each object that a watch, a list or our own write has shown, so that a look need not ask for it.

What is known may be old for a moment. That is safe where each write names the version that it was decided on: the API
server refuses it then, and the object is read anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from talkoo_operator.queue import Key

Object = dict[str, Any]


class Known:
    """Objects of one kind. Versions of etcd are numbers that grow."""

    def __init__(self, news: Callable[[Key], None]) -> None:
        """`news` is called with what a watch told while we wrote, and was not the echo of that."""
        self._news = news
        self._objects: dict[Key, Object] = {}
        self._writing: dict[Key, Mapping[str, Any] | None] = {}
        """On their way to the API server, each with the newest that was shown meanwhile."""
        self.whole = False
        """All were listed once: what is not here came later, or was never there."""

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> Object | None:
        """A copy that may be written into at its top; None: not known, which does not mean that it is not there."""
        found = self._objects.get(key)
        return None if found is None else dict(found)

    def of(self, namespace: str) -> list[Object]:
        return [each for key, each in self._objects.items() if key[0] == namespace]

    def take(self, found: Mapping[str, Any]) -> bool:
        """As somebody else showed it; whether that is news."""
        key = _key(found)
        if key in self._writing:
            before = self._writing[key]
            if before is None or _version(before) < _version(found):
                self._writing[key] = found  # maybe our own write, whose answer is not here yet
            return False
        known = self._objects.get(key)
        if known is not None and _version(known) >= _version(found):
            return False
        self._objects[key] = _without_managers(found)
        return True

    @contextlib.contextmanager
    def writing(self, key: Key) -> Iterator[None]:
        """Around a write and `wrote`, or `drop` where it was refused."""
        self._writing[key] = None
        try:
            yield
        finally:
            shown = self._writing.pop(key)
            if shown is not None and self.take(shown):
                self._news(key)

    def wrote(self, written: Mapping[str, Any]) -> None:
        """As our own write left it; of an object that is gone meanwhile nothing is kept."""
        key = _key(written)
        if key in self._objects:
            self._objects[key] = _without_managers(written)

    def drop(self, key: Key) -> None:
        """It was not what we took it for."""
        self._objects.pop(key, None)

    def gone(self, key: Key) -> None:
        """A watch has said so."""
        self.drop(key)
        if key in self._writing:
            self._writing[key] = None

    def keep(self, keys: Collection[Key]) -> None:
        """What was not listed is gone, though no watch has said so; of one that is just new the next look asks."""
        for gone in self._objects.keys() - keys:
            del self._objects[gone]


def _key(found: Mapping[str, Any]) -> Key:
    meta = found["metadata"]
    return str(meta.get("namespace", "")), str(meta["name"])


def _version(found: Mapping[str, Any]) -> int:
    return int(found["metadata"]["resourceVersion"])


def _without_managers(found: Mapping[str, Any]) -> Object:
    """Who set which field takes more room than the object."""
    meta = {name: value for name, value in found["metadata"].items() if name != "managedFields"}
    return {**found, "metadata": meta}
