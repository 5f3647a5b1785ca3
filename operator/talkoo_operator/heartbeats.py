"""Which nodes' keepers are heard, from the Leases that they renew.

A time in a Lease is never compared with ours: what counts is that it changed, by our own clock. So a node whose clock
is wrong is heard as well as any other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from talkoo_core.errors import TalkooError
from talkoo_operator.node_api import NodeApi

log = logging.getLogger(__name__)
LOOK_S = 15.0
"""One list of all Leases so often: far cheaper than an event for each renewal."""


PACE_STEP_S, SLOWEST_PACE_S = 10, 300
BEATS_PER_S = 7
"""Of all nodes together: one costs the API server 4 to 6 ms, and all are to take less than a twentieth of a core."""


def pace_s(nodes: int) -> int:
    """How often a node's keeper is to renew its Lease, in steps, so that it changes seldom."""
    steps = max(1, -(-nodes // (BEATS_PER_S * PACE_STEP_S)))
    return min(steps * PACE_STEP_S, SLOWEST_PACE_S)


@dataclass(slots=True)
class _Beat:
    renewed: str
    changed_at: float
    """By our clock; of the first sight until it changes."""
    seen_twice: bool
    """It was renewed while we listened."""
    duration_s: int


class Beats:
    """Pure: what was listed, and when."""

    def __init__(self) -> None:
        self._beats: dict[str, _Beat] = {}
        self._heard: dict[str, bool | None] = {}

    def note(self, listed: Mapping[str, tuple[str, int]], now: float) -> list[str]:
        """Take a list (renewal as written, seconds that it holds); the names of nodes for which `heard` changed."""
        for name, (renewed, duration_s) in listed.items():
            known = self._beats.get(name)
            if known is None:
                self._beats[name] = _Beat(renewed, now, False, duration_s)
            elif known.renewed != renewed:
                self._beats[name] = _Beat(renewed, now, True, duration_s)
        for gone in self._beats.keys() - listed.keys():
            del self._beats[gone]
        before, self._heard = self._heard, {name: self._judge(beat, now) for name, beat in self._beats.items()}
        return sorted(name for name in before | self._heard if before.get(name) != self._heard.get(name))

    def __len__(self) -> int:
        return len(self._beats)

    def heard(self, name: str) -> bool | None:
        """None until there is ground for a word: no Lease, or one that was not renewed while we listened."""
        return self._heard.get(name)

    @staticmethod
    def _judge(beat: _Beat, now: float) -> bool | None:
        if now - beat.changed_at > beat.duration_s:
            return False
        return True if beat.seen_twice else None


class Heartbeats:
    """The operator's ear."""

    def __init__(self, api: NodeApi) -> None:
        self._api = api
        self._beats = Beats()

    def heard(self, name: str) -> bool | None:
        return self._beats.heard(name)

    def pace_s(self) -> int:
        return pace_s(len(self._beats))

    async def run(self, changed: Callable[[str], None]) -> None:
        """For ever; `changed` is called with the name of a node that fell silent or is heard again."""
        while True:
            try:
                for name in self._beats.note(await self._api.beats(), time.monotonic()):
                    changed(name)
            except TalkooError as error:
                log.warning("the nodes' heart-beats cannot be listed: %s", error)
            await asyncio.sleep(LOOK_S)
