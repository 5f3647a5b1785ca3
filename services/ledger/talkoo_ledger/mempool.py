"""Transactions that wait for a block: checked, in order of arrival, bounded, with a fair share for each sender."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from talkoo_core.errors import Exhausted, TalkooError, error_of
from talkoo_ledger.application import CheckResult

MAX_TXS = 5_000
MAX_BYTES = 32 * 1024 * 1024
MAX_PER_SENDER = 256


@dataclass(frozen=True, slots=True)
class _Waiting:
    data: bytes
    sender: str


class Mempool:
    """`check` is the application's `check_tx`, which follows the nonces of what waits."""

    def __init__(self, check: Callable[[bytes], CheckResult]) -> None:
        self._check = check
        self._waiting: dict[bytes, _Waiting] = {}
        self._bytes = 0
        self._by_sender: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, tx_hash: bytes) -> bool:
        return tx_hash in self._waiting

    def add(self, data: bytes, tx_hash: bytes) -> bool:
        """Take a transaction; False when it waits already. Raises its typed error, or Exhausted without room."""
        if tx_hash in self._waiting:
            return False
        if len(self._waiting) >= MAX_TXS or self._bytes + len(data) > MAX_BYTES:
            raise Exhausted("too many transactions wait for a block; send it again in a moment", code="mempool_full")
        checked = self._checked(data)
        if self._by_sender[checked.sender] >= MAX_PER_SENDER:
            # The check has already counted it; the next recheck forgets that.
            raise Exhausted(
                f"{MAX_PER_SENDER} transactions of {checked.sender} wait already; let some become final",
                code="sender_full",
            )
        self._put(checked, data)
        return True

    def transactions(self) -> list[bytes]:
        return [waiting.data for waiting in self._waiting.values()]

    def after_block(self, final: Sequence[bytes]) -> None:
        """Drop what is final (hashes), and what a new check refuses. Call it right after the application's commit."""
        kept = list(self._waiting.items())
        gone = set(final)
        self._waiting.clear()
        self._by_sender.clear()
        self._bytes = 0
        for tx_hash, waiting in kept:
            if tx_hash in gone:
                continue
            try:
                self._put(self._checked(waiting.data), waiting.data)
            except TalkooError:
                continue  # its sender learns it when it asks for the result, or sends it again

    def _checked(self, data: bytes) -> CheckResult:
        checked = self._check(data)
        if checked.code != 0:
            raise error_of(checked.family, checked.message, checked.error_code)
        return checked

    def _put(self, checked: CheckResult, data: bytes) -> None:
        self._waiting[checked.hash] = _Waiting(data, checked.sender)
        self._bytes += len(data)
        self._by_sender[checked.sender] += 1
