"""Our own engine behind the interface that the Ledger service uses of any engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from talkoo_core.errors import TalkooError
from talkoo_ledger.executor import Executor
from talkoo_ledger.node import Node
from talkoo_ledger.store import StoredBlock

CHECKED_AT_ONCE = 32


class EmbeddedEngine:
    """`talkoo_ledger.engine.Engine` by a node of this process."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def executor(self) -> Executor:
        return self._node.executor

    @property
    def catching_up(self) -> bool:
        return self._node.sync.active

    @property
    def round(self) -> int:
        return self._node.driver.round

    def connected(self) -> list[str]:
        return self._node.mesh.connected()

    def waiting(self) -> int:
        return len(self._node.mempool)

    def waits(self, tx_hash: bytes) -> bool:
        return tx_hash in self._node.mempool

    async def submit(self, txs: Sequence[bytes]) -> list[TalkooError | None]:
        outcomes: list[TalkooError | None] = []
        for index, data in enumerate(txs):
            try:
                self._node.broadcast(data)
                outcomes.append(None)
            except TalkooError as error:
                outcomes.append(error)
            if index % CHECKED_AT_ONCE == CHECKED_AT_ONCE - 1:
                await asyncio.sleep(0)  # consensus goes on between
        return outcomes

    async def stored_block(self, height: int) -> StoredBlock:
        return self._node.executor.store.block(height)
