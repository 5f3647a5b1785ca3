"""Reading and writing the status of our smaller resources, as each of their controllers does it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from talkoo_core.errors import Conflict, NotFound, TalkooError
from talkoo_operator.api import GROUP, VERSION, KubernetesApi
from talkoo_operator.known import Known
from talkoo_operator.queue import Key
from talkoo_operator.status import changes, timestamp

log = logging.getLogger(__name__)
Object = dict[str, Any]
AT_ONCE_S = 0.0
EVENTS_PER_S, EVENTS_AT_ONCE = 2.0, 50
"""Of one kind of object: in the long run, and at once."""


class Outrun(Exception):
    """The object has changed since it was read: it is read again, and decided again."""


class Courtesy:
    """A bucket of events: each costs the API server as much as a write of the object itself."""

    def __init__(self) -> None:
        self._left, self._at_s = float(EVENTS_AT_ONCE), float("-inf")

    def may(self, now_s: float) -> bool:
        passed_s, self._at_s = now_s - self._at_s, now_s
        self._left = min(self._left + passed_s * EVENTS_PER_S, float(EVENTS_AT_ONCE))
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Objects:
    """Those of one kind. `now` is the API server's time in seconds since 1970.

    `known`: where the newest of each lies, if somebody keeps it; then only what is not there is asked for.
    """

    def __init__(
        self, api: KubernetesApi, plural: str, kind: str, now: Callable[[], float], known: Known | None = None
    ) -> None:
        self._api = api
        self._plural = plural
        self._kind = kind
        self._now = now
        self._known = known
        self._courtesy = Courtesy()

    async def read(self, key: Key) -> Object | None:
        """None: it is gone."""
        known = self._known.get(key) if self._known is not None else None
        if known is not None:
            return known
        try:
            found = await self._api.object(self._plural, *key)
        except NotFound:
            return None
        if self._known is not None:
            self._known.take(found)
        return found

    def when(self, about: Object) -> tuple[int, str]:
        """Generation and time, as the functions of `status` take them."""
        return about["metadata"]["generation"], timestamp(self._now())

    async def write(self, about: Object, status: Object) -> None:
        """Only what differs is sent, and only over what was read. Raises Outrun when the object has changed since."""
        change = changes(about.get("status", {}), status)
        if not change:
            return
        written = await self._written(about, self._api.patch_object_status(self._plural, about, change))
        about["metadata"], about["status"] = written["metadata"], written.get("status", {})

    async def finalizers(self, about: Object, wanted: list[str]) -> None:
        """Over what was read, so that nobody else's finalizer is lost. Raises Outrun."""
        meta = about["metadata"]
        change = {"metadata": {"finalizers": wanted, "resourceVersion": meta["resourceVersion"]}}
        await self._written(about, self._api.patch_object(self._plural, meta["namespace"], meta["name"], change))

    async def _written(self, about: Object, call: Awaitable[Object]) -> Object:
        """Raises Outrun."""
        key = about["metadata"]["namespace"], about["metadata"]["name"]
        with self._known.writing(key) if self._known is not None else contextlib.nullcontext():
            try:
                written = await call
            except (Conflict, NotFound):
                if self._known is not None:
                    self._known.drop(key)
                raise Outrun from None
            if self._known is not None:
                self._known.wrote(written)
            return written

    async def event(self, about: Object, kind: str, reason: str, message: str) -> None:
        """A courtesy: the status has said it. Where very much happens at once, some are left out."""
        if not self._courtesy.may(time.monotonic()):
            log.debug("an event about %s was left out: %s", about["metadata"]["name"], reason)
            return
        named = {"apiVersion": f"{GROUP}/{VERSION}", "kind": self._kind, "metadata": about["metadata"]}
        try:
            await self._api.event(named, kind, reason, message)
        except TalkooError as error:
            log.warning("an event about %s was not taken: %s", about["metadata"]["name"], error)
