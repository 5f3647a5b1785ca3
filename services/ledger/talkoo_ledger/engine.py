"""What the Ledger service needs of whatever orders blocks: our own engine (`embedded`) or CometBFT (`comet.engine`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from talkoo_core.errors import TalkooError
from talkoo_ledger.executor import Executor
from talkoo_ledger.store import StoredBlock


class Engine(Protocol):
    """`executor` holds the application, the store of results and events, and the chain's last block."""

    @property
    def executor(self) -> Executor: ...

    @property
    def catching_up(self) -> bool:
        """Whether blocks are being fetched from others."""

    @property
    def round(self) -> int:
        """Of the height that is being decided."""

    def connected(self) -> list[str]:
        """Peers, by organization where that is known."""

    def waiting(self) -> int:
        """Transactions that wait for a block."""

    def waits(self, tx_hash: bytes) -> bool:
        """Whether this node knows the transaction as one that waits."""

    async def submit(self, txs: Sequence[bytes]) -> list[TalkooError | None]:
        """Take clients' transactions, in order, and spread them. For each: None, or why it was refused."""

    async def stored_block(self, height: int) -> StoredBlock:
        """A decided block with its commit. Raises NotFound (`no_block`)."""
