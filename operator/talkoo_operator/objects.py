"""Reading and writing the status of our smaller resources, as each of their controllers does it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from talkoo_core.errors import Conflict, NotFound, TalkooError
from talkoo_operator.api import GROUP, VERSION, KubernetesApi
from talkoo_operator.queue import Key
from talkoo_operator.status import changes, timestamp

log = logging.getLogger(__name__)
Object = dict[str, Any]
AT_ONCE_S = 0.0


class Outrun(Exception):
    """The object has changed since it was read: it is read again, and decided again."""


class Objects:
    """Those of one kind. `now` is the API server's time in seconds since 1970."""

    def __init__(self, api: KubernetesApi, plural: str, kind: str, now: Callable[[], float]) -> None:
        self._api = api
        self._plural = plural
        self._kind = kind
        self._now = now

    async def read(self, key: Key) -> Object | None:
        """None: it is gone."""
        try:
            return await self._api.object(self._plural, *key)
        except NotFound:
            return None

    def when(self, about: Object) -> tuple[int, str]:
        """Generation and time, as the functions of `status` take them."""
        return about["metadata"]["generation"], timestamp(self._now())

    async def write(self, about: Object, status: Object) -> None:
        """Only what differs is sent, and only over what was read. Raises Outrun when the object has changed since."""
        change = changes(about.get("status", {}), status)
        if not change:
            return
        try:
            written = await self._api.patch_object_status(self._plural, about, change)
        except (Conflict, NotFound):
            raise Outrun from None
        about["metadata"], about["status"] = written["metadata"], written.get("status", {})

    async def event(self, about: Object, kind: str, reason: str, message: str) -> None:
        """A courtesy: the status has said it."""
        named = {"apiVersion": f"{GROUP}/{VERSION}", "kind": self._kind, "metadata": about["metadata"]}
        try:
            await self._api.event(named, kind, reason, message)
        except TalkooError as error:
            log.warning("an event about %s was not taken: %s", about["metadata"]["name"], error)
