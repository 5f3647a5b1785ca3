"""Which ledger this is: its id, and the beginning of its genesis' hash, as another chain may go by the same id."""

from __future__ import annotations

import hashlib
import time

from talkoo.client_async import AsyncClient
from talkoo_operator.shared import Shared

HOLDS_S = 5.0
SHOWN = 16
"""Hex digits of the hash."""


class Chain:
    """Asked now and then: no chain begins anew in less time than an answer holds."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._shared = Shared()
        self._name = ""
        self._asked_at = float("-inf")

    async def name(self, *, fresh: bool = False) -> str:
        if fresh or time.monotonic() - self._asked_at > HOLDS_S:
            return await self._shared.read("name", self._ask)
        return self._name

    async def _ask(self) -> str:
        genesis = await self._client.genesis()
        chain_id = (await self._client.status()).chain_id
        self._name = f"{chain_id}/{hashlib.sha256(genesis.encode()).hexdigest()[:SHOWN]}"
        self._asked_at = time.monotonic()
        return self._name
