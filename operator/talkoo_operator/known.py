"""The newest of each object that a watch, a list or our own write has shown, so that a look need not ask for it.

What is known may be old for a moment. That is safe where each write names the version that it was decided on: the API
server refuses it then, and the object is read anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from talkoo_operator.queue import Key

Object = dict[str, Any]


class Known:
    """Objects of one kind. Versions of etcd are numbers that grow."""

    def __init__(self) -> None:
        self._objects: dict[Key, Object] = {}
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
        meta = found["metadata"]
        key = (str(meta.get("namespace", "")), str(meta["name"]))
        known = self._objects.get(key)
        if known is not None and _version(known) >= _version(found):
            return False
        self._objects[key] = _without_managers(found)
        return True

    def wrote(self, written: Mapping[str, Any]) -> None:
        """As our own write left it; of an object that is gone meanwhile nothing is kept."""
        meta = written["metadata"]
        if (str(meta.get("namespace", "")), str(meta["name"])) in self._objects:
            self.take(written)

    def drop(self, key: Key) -> None:
        """It is gone, or was not what we took it for."""
        self._objects.pop(key, None)

    def keep(self, keys: Collection[Key]) -> None:
        """What was not listed is gone, though no watch has said so; of one that is just new the next look asks."""
        for gone in self._objects.keys() - keys:
            del self._objects[gone]


def _version(found: Mapping[str, Any]) -> int:
    return int(found["metadata"]["resourceVersion"])


def _without_managers(found: Mapping[str, Any]) -> Object:
    """Who set which field takes more room than the object."""
    meta = {name: value for name, value in found["metadata"].items() if name != "managedFields"}
    return {**found, "metadata": meta}
