"""The methods that read the chain: blocks, headers, commits, validators, parameters, genesis, status."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import cached_property

import msgspec
from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import ChainState
from talkoo_consensus.encoding import block_id_of, decode_block, decode_commit
from talkoo_consensus.types import NIL_BLOCK_ID, Block, BlockId
from talkoo_consensus.validators import Validator, ValidatorSet

from talkoo_core.errors import InvalidInput, NotFound
from talkoo_core.merkle import Proof, proofs_from_byte_slices
from talkoo_ledger.event_index import block_events
from talkoo_ledger.executor import Executor
from talkoo_ledger.rpc.documents import (
    Document,
    block_document,
    block_id_document,
    commit_document,
    events_document,
    header_document,
    hex_of,
    result_document,
    time_text,
    update_document,
    validator_document,
)
from talkoo_ledger.rpc.searches import Searches
from talkoo_ledger.store import BlockStore

BLOCK_METAS_MAX = 20
PER_PAGE = 30
PER_PAGE_MAX = 100
GENESIS_CHUNK_BYTES = 16 * 1024 * 1024
BLOCKS_REMEMBERED = 16


@dataclass
class ReadBlock:
    """A decoded block; what only some calls need of it is made when the first does."""

    block: Block
    block_id: BlockId
    size_bytes: int
    store: BlockStore

    @cached_property
    def results(self) -> tuple[service_pb2.TxResult, ...]:
        return self.store.block(self.block.header.height).results

    @cached_property
    def proofs(self) -> list[Proof]:
        """Of each transaction against the header's data_hash."""
        return proofs_from_byte_slices([hashlib.sha256(tx).digest() for tx in self.block.data.txs])[1]


class ChainReader:
    """Decoded blocks and validators of an executor; the newest blocks asked for are remembered."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._blocks: OrderedDict[int, ReadBlock] = OrderedDict()

    @property
    def chain(self) -> ChainState:
        return self.executor.chain

    @property
    def last_height(self) -> int:
        return self.chain.last_height

    def height(self, wanted: int | None, latest: int | None = None) -> int:
        """The height asked for, or the latest. Raises InvalidInput in CometBFT's words, which its clients read."""
        latest = self.last_height if latest is None else latest
        if wanted is None:
            return latest
        if wanted <= 0:
            raise InvalidInput(f"height must be greater than 0, but got {wanted}", code="bad_height")
        if wanted > latest:
            raise InvalidInput(
                f"height {wanted} must be less than or equal to the current blockchain height {latest}",
                code="bad_height",
            )
        base = self.executor.store.base()
        if wanted < base:
            raise NotFound(f"height {wanted} is not available, lowest height is {base}", code="no_block")
        return wanted

    def block(self, height: int) -> ReadBlock | None:
        """None where the block is not here."""
        read = self._blocks.get(height)
        if read is None:
            stored = self.executor.store.decided(height)
            if stored is None:
                return None
            block = decode_block(stored[0])
            read = self._blocks[height] = ReadBlock(block, block_id_of(block), len(stored[0]), self.executor.store)
            if len(self._blocks) > BLOCKS_REMEMBERED:
                self._blocks.popitem(last=False)
        return read

    def validators(self, height: int) -> ValidatorSet | None:
        """Of a decided height, of the one under way, and of the one behind it."""
        if height == self.chain.height:
            return self.chain.validators
        if height == self.chain.height + 1:
            return self.chain.next_validators
        return self.executor.store.validators(height)

    def validator_updates(self, height: int) -> list[Validator]:
        """What block `height` changed: the difference of the sets around the height where it takes effect."""
        before, after = self.validators(height + 1), self.validators(height + 2)
        if before is None or after is None:
            return []
        old = {each.address: each for each in before.validators}
        new = {each.address: each for each in after.validators}
        changed = [each for each in new.values() if each.address not in old or old[each.address].power != each.power]
        gone = [Validator(each.address, each.public_key, 0) for each in old.values() if each.address not in new]
        return sorted(changed + gone, key=lambda each: each.address)


def page_of(page: int | None, per_page: int | None, total: int) -> slice:
    """Pages count from 1. Raises InvalidInput (`bad_page`)."""
    size = PER_PAGE if per_page is None or per_page < 1 else min(per_page, PER_PAGE_MAX)
    pages = max((total - 1) // size + 1, 1)
    number = 1 if page is None else page
    if not 1 <= number <= pages:
        raise InvalidInput(f"page should be within [1, {pages}] range, given {number}", code="bad_page")
    return slice((number - 1) * size, number * size)


def descending(order_by: str, default: bool) -> bool:
    if order_by not in ("", "asc", "desc"):
        raise InvalidInput(f"invalid order_by: expected `asc`, `desc` or ``, but got {order_by[:40]}", code="bad_order")
    return order_by == "desc" if order_by else default


class ChainMethods:
    """Each method is named as in CometBFT's RPC and returns its result's document."""

    def __init__(self, reader: ChainReader, search: Searches, genesis: Document) -> None:
        self._reader = reader
        self._search = search
        self._genesis = genesis
        raw = msgspec.json.encode(genesis)
        self._chunks = [raw[at : at + GENESIS_CHUNK_BYTES] for at in range(0, len(raw), GENESIS_CHUNK_BYTES)]

    def health(self) -> Document:
        return {}

    def genesis(self) -> Document:
        return {"genesis": self._genesis}

    def genesis_chunked(self, chunk: int) -> Document:
        if not 0 <= chunk < len(self._chunks):
            raise InvalidInput(f"there are {len(self._chunks)} chunks, {chunk} is invalid", code="bad_chunk")
        data = base64.b64encode(self._chunks[chunk]).decode()
        return {"chunk": str(chunk), "total": str(len(self._chunks)), "data": data}

    async def blockchain(self, min_height: int, max_height: int) -> Document:
        """Newest first, at most BLOCK_METAS_MAX."""
        if min_height < 0 or max_height < 0:
            raise InvalidInput("heights must be non-negative", code="bad_height")
        last = self._reader.last_height
        high = min(max_height or last, last)
        low = max(min_height or 1, self._reader.executor.store.base(), high - BLOCK_METAS_MAX + 1)
        if low > high:
            raise InvalidInput(f"min height {low} can't be greater than max height {high}", code="bad_height")
        metas = [_meta(each) async for each in self._blocks(range(high, low - 1, -1))]
        return {"last_height": str(last), "block_metas": metas}

    def block(self, height: int | None) -> Document:
        return _block_result(self._reader.block(self._reader.height(height)))

    async def block_by_hash(self, hash_: bytes) -> Document:
        return _block_result(await self._by_hash(hash_))

    def header(self, height: int | None) -> Document:
        return _header_result(self._reader.block(self._reader.height(height)))

    async def header_by_hash(self, hash_: bytes) -> Document:
        return _header_result(await self._by_hash(hash_))

    def commit(self, height: int | None) -> Document:
        """Canonical: the one in the next block. Of the last block it is the one this node decided with."""
        at = self._reader.height(height)
        read, following = self._reader.block(at), self._reader.block(at + 1)
        if read is None:
            return {"signed_header": {"header": None, "commit": None}, "canonical": False}
        if following is not None:
            commit = following.block.last_commit
        else:
            seen = self._reader.executor.store.commit(at)
            assert seen is not None, f"block {at} has no commit"
            commit = decode_commit(seen)
        signed = {"header": header_document(read.block.header), "commit": commit_document(commit)}
        return {"signed_header": signed, "canonical": following is not None}

    def block_results(self, height: int | None) -> Document:
        stored = self._reader.executor.store.block(self._reader.height(height))
        updates = self._reader.validator_updates(stored.height)
        return {
            "height": str(stored.height),
            "txs_results": [result_document(each) for each in stored.results] or None,
            "finalize_block_events": events_document(block_events(stored.events.events, stored.results)) or None,
            "validator_updates": [update_document(each) for each in updates] or None,
            "consensus_param_updates": None,
            "app_hash": base64.b64encode(stored.events.app_hash).decode(),
        }

    def validators(self, height: int | None, page: int | None, per_page: int | None) -> Document:
        at = self._reader.height(height, latest=self._reader.chain.height)
        found = self._reader.validators(at)
        if found is None:
            raise NotFound(f"the validators of height {at} are not on this node", code="no_block")
        shown = found.validators[page_of(page, per_page, len(found))]
        return {
            "block_height": str(at),
            "validators": [validator_document(each) for each in shown],
            "count": str(len(shown)),
            "total": str(len(found)),
        }

    def consensus_params(self, height: int | None) -> Document:
        """They do not change: what genesis says."""
        at = self._reader.height(height, latest=self._reader.chain.height)
        return {"block_height": str(at), "consensus_params": self._genesis["consensus_params"]}

    async def block_search(self, query: str, page: int | None, per_page: int | None, order_by: str) -> Document:
        newest_first = descending(order_by, default=True)
        found = await self._search.blocks(query)
        heights = (found[::-1] if newest_first else found)[page_of(page, per_page, len(found))]
        blocks = [_block_result(each) async for each in self._blocks(heights)]
        return {"blocks": blocks, "total_count": str(len(found))}

    async def _blocks(self, heights: Iterable[int]) -> AsyncIterator[ReadBlock]:
        """Those that are here, with room for consensus after each."""
        for height in heights:
            read = self._reader.block(height)
            await asyncio.sleep(0)
            if read is not None:
                yield read

    async def _by_hash(self, hash_: bytes) -> ReadBlock | None:
        height = await self._search.height_of(hash_)
        return None if height is None else self._reader.block(height)


def _meta(read: ReadBlock) -> Document:
    return {
        "block_id": block_id_document(read.block_id),
        "block_size": str(read.size_bytes),
        "header": header_document(read.block.header),
        "num_txs": str(len(read.block.data.txs)),
    }


def _block_result(read: ReadBlock | None) -> Document:
    if read is None:
        return {"block_id": block_id_document(NIL_BLOCK_ID), "block": None}
    return {"block_id": block_id_document(read.block_id), "block": block_document(read.block)}


def _header_result(read: ReadBlock | None) -> Document:
    return {"header": None if read is None else header_document(read.block.header)}


def sync_info(reader: ChainReader, catching_up: bool) -> Document:
    """Of `status`. The app hashes are those in the headers: of the state before the block."""
    chain, base = reader.chain, reader.executor.store.base()
    first, last = reader.block(base), reader.block(chain.last_height)
    return {
        "latest_block_hash": hex_of(chain.last_block_id.hash),
        "latest_app_hash": "" if last is None else hex_of(last.block.header.app_hash),
        "latest_block_height": str(chain.last_height),
        "latest_block_time": time_text(chain.last_time_ns),
        "earliest_block_hash": "" if first is None else hex_of(first.block_id.hash),
        "earliest_app_hash": "" if first is None else hex_of(first.block.header.app_hash),
        "earliest_block_height": str(base),
        "earliest_block_time": time_text(0 if first is None else first.block.header.time_ns),
        "catching_up": catching_up,
    }
