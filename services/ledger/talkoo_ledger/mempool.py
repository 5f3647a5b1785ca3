"""Transactions that wait for a block: checked, in order of arrival, bounded, with a fair share for each sender."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from talkoo_core.errors import Exhausted, TalkooError, error_of
from talkoo_ledger.application import CheckResult

MAX_TXS = 5_000
MAX_BYTES = 32 * 1024 * 1024
MAX_PER_SENDER = 256


class Checks(Protocol):
    """What the application says about waiting transactions; it follows their nonces."""

    def check_tx(self, data: bytes, admit: Callable[[str], None] | None = None) -> CheckResult:
        """`admit` is asked about the sender before the transaction counts, and refuses by a typed error."""

    def retract(self, data: bytes) -> None:
        """Forget a checked transaction, the last of its sender."""


class _Waiting(Struct, frozen=True, gc=False):
    hash: bytes
    data: bytes
    sender: str


class Mempool:
    """When it is full, a sender with less than an equal share still finds room: the one with most gives up its last."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._waiting: dict[bytes, _Waiting] = {}
        self._bytes = 0
        self._by_sender: dict[str, list[_Waiting]] = {}
        """In order of nonces; no sender without any."""
        self._senders_with: dict[int, dict[str, None]] = {}
        """Senders by how many of theirs wait."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def __contains__(self, tx_hash: bytes) -> bool:
        return tx_hash in self._waiting

    def add(self, data: bytes, tx_hash: bytes) -> bool:
        """Take a transaction; False when it waits already. Raises its typed error, or Exhausted without room."""
        if tx_hash in self._waiting:
            return False
        self._put(self._checked(data, lambda sender: self._admit(sender, len(data))), data)
        return True

    def transactions(self) -> list[bytes]:
        return [waiting.data for waiting in self._waiting.values()]

    def after_block(self, final: Sequence[bytes]) -> None:
        """Drop what is final (hashes), and what a new check refuses. Call it right after the application's commit."""
        kept = list(self._waiting.values())
        gone = set(final)
        self._waiting.clear()
        self._by_sender.clear()
        self._senders_with.clear()
        self._bytes = 0
        for waiting in kept:
            if waiting.hash in gone:
                continue
            try:
                self._put(self._checked(waiting.data), waiting.data)
            except TalkooError:
                continue  # its sender learns it when it asks for the result, or sends it again

    def _admit(self, sender: str, size_bytes: int) -> None:
        """Raises Exhausted where this sender finds no room for one more."""
        held = len(self._by_sender.get(sender, ()))
        if held >= MAX_PER_SENDER:
            raise Exhausted(
                f"{MAX_PER_SENDER} transactions of {sender} wait already; let some become final", code="sender_full"
            )
        while len(self._waiting) >= MAX_TXS or self._bytes + size_bytes > MAX_BYTES:
            most = max(self._senders_with, default=0)
            if most <= held + 1:
                raise Exhausted(
                    "too many transactions wait for a block; send it again in a moment", code="mempool_full"
                )
            self._drop_last(next(iter(self._senders_with[most])))

    def _drop_last(self, sender: str) -> None:
        waiting = self._by_sender[sender][-1]
        self._checks.retract(waiting.data)
        self._counted(sender, -1)
        self._by_sender[sender].pop()  # it had at least two: another sender has less
        del self._waiting[waiting.hash]
        self._bytes -= len(waiting.data)

    def _checked(self, data: bytes, admit: Callable[[str], None] | None = None) -> CheckResult:
        checked = self._checks.check_tx(data, admit)
        if checked.code != 0:
            raise error_of(checked.family, checked.message, checked.error_code)
        return checked

    def _put(self, checked: CheckResult, data: bytes) -> None:
        waiting = _Waiting(checked.hash, data, checked.sender)
        self._waiting[checked.hash] = waiting
        self._bytes += len(data)
        self._counted(checked.sender, 1)
        self._by_sender.setdefault(checked.sender, []).append(waiting)

    def _counted(self, sender: str, change: int) -> None:
        """Move a sender to its new count, before its list changes."""
        count = len(self._by_sender.get(sender, ()))
        if count:
            del self._senders_with[count][sender]
            if not self._senders_with[count]:
                del self._senders_with[count]
        if count + change:
            self._senders_with.setdefault(count + change, {})[sender] = None
