"""The address book: where members' ledger nodes may be reached. Bounded, kept on disk, and never trusted.

An entry is an endpoint that somebody named for a member organization. Who answers there must show that member's own
certificate, so a false entry costs a failed dial and nothing else; quotas keep one source from crowding out the others.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from talkoo_core.errors import InvalidInput
from talkoo_runtime.disk import write_atomic

log = logging.getLogger(__name__)

MAX_ENTRIES = 1_024
MAX_FOR_ONE_MEMBER = 4
"""Endpoints of one organization, those of the settings not counted."""
MAX_FROM_ONE_SOURCE = 256
"""Entries that one member's hearsay may hold at a time."""
MAX_ENDPOINT_LENGTH = 255
MAX_SHARED = 64
"""Entries told to a peer at once."""
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
RETRY_HEARSAY_MAX_S = 60.0
"""Between dials of an endpoint that never answered and that no one whom we trust named."""
FORGET_AFTER_FAILURES = 8
"""In a row, of an endpoint that never answered; then it makes room."""
SETTINGS = ""
"""The source of what the settings name."""


class Entry(msgspec.Struct):
    """One endpoint of a member. `source`: who named it; the member itself, another one, or the settings."""

    organization: str
    endpoint: str
    source: str
    last_success_ns: int = 0
    """0: it never answered with the member's certificate."""
    failures: int = 0
    """In a row."""
    next_try_ns: int = 0

    @property
    def tried(self) -> bool:
        return self.last_success_ns > 0

    @property
    def trusted(self) -> bool:
        """Not hearsay: it answered, or the member itself or our settings named it."""
        return self.tried or self.source in (SETTINGS, self.organization)


class _File(msgspec.Struct):
    version: int
    entries: list[Entry]


class AddressBook:
    """`path`: the file; a damaged one is told and replaced, for the settings' peers name everybody else again."""

    def __init__(self, path: Path, own: str) -> None:
        self._path = path
        self._own = own
        self._entries: dict[tuple[str, str], Entry] = {}
        self.dirty = False
        self._read()

    def __len__(self) -> int:
        return len(self._entries)

    def pin(self, organization: str, endpoint: str) -> None:
        """An endpoint of the settings: never forgotten. Raises InvalidInput (code `bad_endpoint`)."""
        check_endpoint(endpoint)
        old = self._entries.get((organization, endpoint))
        if old is None:
            self._entries[organization, endpoint] = Entry(organization, endpoint, SETTINGS)
        else:
            old.source, old.failures, old.next_try_ns = SETTINGS, 0, 0

    def hear(self, source: str, organization: str, endpoint: str) -> bool:
        """Somebody names an endpoint; False when there is no room for it. Raises InvalidInput (code `bad_endpoint`)."""
        check_endpoint(endpoint)
        if organization == self._own:
            return False
        if source == organization:
            self._only_word_of(organization, endpoint)
        old = self._entries.get((organization, endpoint))
        if old is not None:
            if source == organization and old.source != SETTINGS:
                old.source = source
            return True
        if not self._has_room(source, organization):
            return False
        self._entries[organization, endpoint] = Entry(organization, endpoint, source)
        self.dirty = True
        return True

    def choose(self, organization: str, now_ns: int) -> str | None:
        """The best endpoint of a member whose time to be dialled has come."""
        due = [e for e in self._of(organization) if e.next_try_ns <= now_ns]
        if not due:
            return None
        return min(due, key=lambda e: (e.failures, not e.tried, not e.trusted, -e.last_success_ns, e.endpoint)).endpoint

    def succeeded(self, organization: str, endpoint: str, now_ns: int) -> None:
        """The member's certificate was shown there."""
        entry = self._entries.get((organization, endpoint))
        if entry is not None:
            entry.last_success_ns, entry.failures, entry.next_try_ns = now_ns, 0, 0
            self.dirty = True

    def failed(self, organization: str, endpoint: str, now_ns: int, jitter: float) -> None:
        """A dial failed or its stream ended. `jitter`: 0.5 to 1.5, for nodes that lost one another must not dial in
        step."""
        entry = self._entries.get((organization, endpoint))
        if entry is None:
            return
        entry.failures += 1
        if not entry.trusted and entry.failures >= FORGET_AFTER_FAILURES:
            del self._entries[organization, endpoint]
            self.dirty = True
            return
        most = RETRY_MAX_S if entry.trusted else RETRY_HEARSAY_MAX_S
        pause = min(RETRY_FIRST_S * 2 ** min(entry.failures - 1, 16), most) * jitter
        entry.next_try_ns = now_ns + int(pause * 1e9)

    def later(self, organization: str, endpoint: str, now_ns: int, pause_s: float) -> None:
        """Dial it again after a pause: it answered, and wanted no second stream."""
        entry = self._entries.get((organization, endpoint))
        if entry is not None:
            entry.next_try_ns = now_ns + int(pause_s * 1e9)

    def distrust(self, source: str) -> None:
        """Forget what a faulty peer told of others, unless it has proven right."""
        gone = [key for key, e in self._entries.items() if e.source == source and not e.trusted]
        for key in gone:
            del self._entries[key]
        self.dirty = self.dirty or bool(gone)

    def keep_only(self, members: Iterable[str]) -> None:
        """Drop entries of organizations that are no members any more; the settings' stay."""
        names = set(members)
        gone = [key for key, e in self._entries.items() if e.organization not in names and e.source != SETTINGS]
        for key in gone:
            del self._entries[key]
        self.dirty = self.dirty or bool(gone)

    def shared(self) -> list[tuple[str, str]]:
        """What a peer is told: (organization, endpoint) of those that answered or that the member itself named,
        the latest first. Never hearsay: it would travel forever."""
        good = [e for e in self._entries.values() if e.tried or e.source == e.organization]
        good.sort(key=lambda e: (e.failures, -e.last_success_ns, e.organization))
        return [(e.organization, e.endpoint) for e in good[:MAX_SHARED]]

    def encoded(self) -> bytes:
        """What is to be written; the entries of the settings that never answered are not."""
        kept = [e for e in self._entries.values() if e.tried or e.source != SETTINGS]
        return msgspec.json.encode(_File(1, kept))

    def write(self, content: bytes) -> None:
        """Raises Exhausted when the disk is full, OSError otherwise."""
        write_atomic(self._path, content)

    def _read(self) -> None:
        try:
            read = msgspec.json.decode(self._path.read_bytes(), type=_File)
            for entry in read.entries[:MAX_ENTRIES]:
                check_endpoint(entry.endpoint)
                entry.failures, entry.next_try_ns = 0, 0
                # What the settings no longer name has to prove itself like the rest.
                entry.source = entry.source or entry.organization
                self._entries[entry.organization, entry.endpoint] = entry
        except FileNotFoundError:
            return
        except (msgspec.DecodeError, InvalidInput, UnicodeDecodeError) as error:
            log.warning("the address book %s is damaged (%s); it is begun anew from the settings", self._path, error)
            self._entries.clear()

    def _of(self, organization: str) -> list[Entry]:
        return [e for e in self._entries.values() if e.organization == organization]

    def _only_word_of(self, organization: str, endpoint: str) -> None:
        """A member that names a new endpoint of its own has left the one it named before."""
        for entry in self._of(organization):
            if entry.source == organization and entry.endpoint != endpoint:
                del self._entries[organization, entry.endpoint]
                self.dirty = True

    def _has_room(self, source: str, organization: str) -> bool:
        same = [e for e in self._of(organization) if e.source != SETTINGS]
        own_word = source == organization
        if len(same) >= MAX_FOR_ONE_MEMBER:
            worst = max(same, key=lambda e: (not e.trusted, not e.tried, e.failures, -e.last_success_ns))
            if not (own_word or (not worst.trusted and worst.failures > 0)):
                return False
            self._drop(worst)
        hearsay = Counter(e.source for e in self._entries.values() if not e.trusted)
        if not own_word and hearsay[source] >= MAX_FROM_ONE_SOURCE:
            return False
        if len(self._entries) < MAX_ENTRIES:
            return True
        untrusted = [e for e in self._entries.values() if not e.trusted]
        if not untrusted:
            return False
        loudest = max(untrusted, key=lambda e: (hearsay[e.source], e.failures))
        if not own_word and hearsay[loudest.source] <= hearsay[source] + 1:
            return False
        self._drop(loudest)
        return True

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.organization, entry.endpoint]
        self.dirty = True


def check_endpoint(endpoint: str) -> None:
    """host:port. Raises InvalidInput (code `bad_endpoint`)."""
    host, colon, port = endpoint.rpartition(":")
    good = colon and host and port.isdecimal() and port.isascii() and 0 < int(port[:6]) <= 65_535
    plain = all(c.isascii() and (c.isalnum() or c in ".-[]:_") for c in host)
    if not (good and plain) or len(endpoint) > MAX_ENDPOINT_LENGTH:
        raise InvalidInput(f"{endpoint[:64]!r} is no host:port of a ledger node", code="bad_endpoint")
