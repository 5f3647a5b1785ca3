"""What peers may ask of this node over their streams. Each answer is bounded; one question of a peer at a time."""

from __future__ import annotations

import asyncio

from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.errors import InvalidInput
from talkoo_ledger.executor import Executor
from talkoo_ledger.peers import Mesh

BLOCKS_PER_ANSWER = 128
ANSWER_BYTES = 1024 * 1024
"""A further block is put into an answer only while it stays below; the first one always."""


class Answers:
    """Reads the store; changes nothing."""

    def __init__(self, executor: Executor, mesh: Mesh) -> None:
        self._executor = executor
        self._mesh = mesh

    async def answer(self, organization: str, ask: service_pb2.Ask) -> service_pb2.Answer:
        """Raises InvalidInput (code `unknown_question`)."""
        kind = ask.WhichOneof("ask")
        if kind == "blocks":
            return service_pb2.Answer(id=ask.id, blocks=await self._blocks(ask.blocks))
        if kind == "addresses":
            return service_pb2.Answer(id=ask.id, addresses=self._mesh.addresses_for(organization))
        raise InvalidInput("a question this node does not know; the peer may be of a newer version", code="unknown_ask")

    async def _blocks(self, request: service_pb2.BlocksRequest) -> service_pb2.BlockBatch:
        batch, size = service_pb2.BlockBatch(), 0
        last = min(request.to_height, request.from_height + BLOCKS_PER_ANSWER - 1, self._executor.chain.last_height)
        for height in range(request.from_height, last + 1):
            stored = self._executor.store.decided(height)
            if stored is None or (size and size + len(stored[0]) + len(stored[1]) > ANSWER_BYTES):
                break
            batch.blocks.add(height=height, block=stored[0], commit=stored[1])
            size += len(stored[0]) + len(stored[1])
            await asyncio.sleep(0)  # consensus goes on between two reads of the disk
        return batch
