"""Which ledger this is: its id, and the beginning of its genesis' hash, as another chain may go by the same id."""

from __future__ import annotations

import hashlib

from talkoo.client_async import AsyncClient

SHOWN = 16
"""Hex digits of the hash."""


class Chain:
    """Asked once; a chain that begins anew is noticed when somebody asks afresh."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._name = ""

    async def name(self, *, fresh: bool = False) -> str:
        if fresh or not self._name:
            genesis = await self._client.genesis()
            chain_id = (await self._client.status()).chain_id
            self._name = f"{chain_id}/{hashlib.sha256(genesis.encode()).hexdigest()[:SHOWN]}"
        return self._name
