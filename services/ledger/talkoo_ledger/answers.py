"""What peers may ask of this node over their streams. Each answer is bounded; one question of a peer at a time."""

from __future__ import annotations

import asyncio

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.encoding import decode_block, encode_header
from talkoo_consensus.types import Header
from talkoo_consensus.validators import ValidatorSet

from talkoo_core.errors import InvalidInput
from talkoo_ledger.executor import Executor
from talkoo_ledger.peers import Mesh
from talkoo_ledger.snapshots import FORMAT, SnapshotStore

MAX_HEIGHT = 2**62
BLOCKS_PER_ANSWER = 128
ANSWER_BYTES = 1024 * 1024
"""A further block is put into an answer only while it stays below; the first one always."""


class Answers:
    """Reads the store; changes nothing."""

    def __init__(self, executor: Executor, mesh: Mesh, snapshots: SnapshotStore) -> None:
        self._executor = executor
        self._mesh = mesh
        self._snapshots = snapshots

    async def answer(self, organization: str, ask: service_pb2.Ask) -> service_pb2.Answer:
        """Raises InvalidInput (code `unknown_question`)."""
        kind = ask.WhichOneof("ask")
        if kind == "blocks":
            return service_pb2.Answer(id=ask.id, blocks=await self._blocks(ask.blocks))
        if kind == "light_block":
            return service_pb2.Answer(id=ask.id, light_block=self._light_block(ask.light_block.height))
        if kind == "snapshots":
            return service_pb2.Answer(id=ask.id, snapshots=await asyncio.to_thread(self._offered))
        if kind == "chunk":
            return service_pb2.Answer(id=ask.id, chunk=await asyncio.to_thread(self._chunk, ask.chunk))
        if kind == "module_roots":
            return service_pb2.Answer(id=ask.id, module_roots=self._module_roots(ask.module_roots.height))
        if kind == "addresses":
            return service_pb2.Answer(id=ask.id, addresses=self._mesh.addresses_for(organization))
        raise InvalidInput("a question this node does not know; the peer may be of a newer version", code="unknown_ask")

    def _light_block(self, height: int) -> service_pb2.LightBlock:
        stored = self._executor.store.decided(height) if height < MAX_HEIGHT else None
        validators = self._executor.store.validators(height) if height < MAX_HEIGHT else None
        if stored is None or validators is None:
            return service_pb2.LightBlock()
        return light_block_message(decode_block(stored[0]).header, stored[1], validators)

    def _module_roots(self, height: int) -> service_pb2.ModuleRoots:
        held = self._executor.store.module_roots(height) if height < MAX_HEIGHT else {}
        roots = [service_pb2.ModuleRoot(module=name, root=root) for name, root in held.items()]
        return service_pb2.ModuleRoots(roots=roots)

    def _offered(self) -> service_pb2.Snapshots:
        offered = service_pb2.Snapshots()
        for snapshot in self._snapshots.list():
            offered.snapshots.add(
                height=snapshot.height,
                format=snapshot.format,
                chunks=snapshot.chunks,
                hash=snapshot.hash,
                metadata=snapshot.metadata,
            )
        return offered

    def _chunk(self, request: service_pb2.ChunkRequest) -> service_pb2.Chunk:
        known = request.format == FORMAT
        return service_pb2.Chunk(data=(self._snapshots.chunk(request.height, request.index) or b"") if known else b"")

    async def _blocks(self, request: service_pb2.BlocksRequest) -> service_pb2.BlockBatch:
        batch, size = service_pb2.BlockBatch(), 0
        if not 0 < request.from_height < MAX_HEIGHT:
            raise InvalidInput(f"blocks from height {request.from_height}", code="bad_height")
        last = min(request.to_height, request.from_height + BLOCKS_PER_ANSWER - 1, self._executor.chain.last_height)
        for height in range(request.from_height, last + 1):
            stored = self._executor.store.decided(height)
            if stored is None or (size and size + len(stored[0]) + len(stored[1]) > ANSWER_BYTES):
                break
            batch.blocks.add(height=height, block=stored[0], commit=stored[1])
            size += len(stored[0]) + len(stored[1])
            await asyncio.sleep(0)  # consensus goes on between two reads of the disk
        return batch


def light_block_message(header: Header, commit: bytes, validators: ValidatorSet) -> service_pb2.LightBlock:
    """`commit` as CometBFT encodes it."""
    return service_pb2.LightBlock(
        header=encode_header(header),
        commit=commit,
        validators=[
            service_pb2.ValidatorEntry(public_key=v.public_key, power=v.power, proposer_priority=v.proposer_priority)
            for v in validators.validators
        ],
        proposer_address=validators.proposer_address,
    )
