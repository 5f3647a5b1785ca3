"""The methods that take, check and find transactions, and ask the state."""

from __future__ import annotations

import asyncio
import base64
import hashlib

from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.errors import Exhausted, NotFound, TalkooError, Unavailable
from talkoo_ledger.engine import Engine
from talkoo_ledger.event_index import Place
from talkoo_ledger.mempool import Mempool
from talkoo_ledger.query import answer
from talkoo_ledger.rpc.chain import PER_PAGE, PER_PAGE_MAX, ChainReader, descending, page_of
from talkoo_ledger.rpc.documents import Document, base64_of, hex_of, proof_document, result_document
from talkoo_ledger.rpc.searches import Searches
from talkoo_ledger.transition import failed

COMMIT_TIMEOUT_S = 10.0
"""How long broadcast_tx_commit waits for a block."""
COMMIT_WAITERS_MAX = 100


class TransactionMethods:
    """Each method is named as in CometBFT's RPC and returns its result's document."""

    def __init__(self, reader: ChainReader, engine: Engine, mempool: Mempool, search: Searches) -> None:
        self._reader = reader
        self._engine = engine
        self._mempool = mempool
        self._search = search
        self._waiting = 0

    # --- taking ---

    async def broadcast_tx_async(self, tx: bytes) -> Document:
        """As CometBFT's it says only the hash; whether the transaction is good, a block will say."""
        await self._submit(tx)
        return _taken(tx, {"code": 0, "log": "", "codespace": ""})

    async def broadcast_tx_sync(self, tx: bytes) -> Document:
        return _taken(tx, await self._submit(tx))

    async def broadcast_tx_commit(self, tx: bytes) -> Document:
        """Waits until a block holds it, COMMIT_TIMEOUT_S at most."""
        if self._waiting >= COMMIT_WAITERS_MAX:
            raise Exhausted(f"max_subscription_clients {COMMIT_WAITERS_MAX} reached", code="too_many_waiters")
        checked = await self._submit(tx)
        tx_hash = hashlib.sha256(tx).digest()
        result = service_pb2.TxResult()
        if checked["code"] == 0:
            self._waiting += 1
            try:
                async with asyncio.timeout(COMMIT_TIMEOUT_S):
                    result = await self._final(tx_hash)
            except TimeoutError:
                raise Unavailable("timed out waiting for tx to be included in a block", code="not_final_yet") from None
            finally:
                self._waiting -= 1
        return {
            "check_tx": checked,
            "tx_result": result_document(result),
            "hash": hex_of(tx_hash),
            "height": str(result.height),
        }

    def check_tx(self, tx: bytes) -> Document:
        """Whether it may wait for a block; it does not."""
        application = self._reader.executor.application
        checked = application.check_tx(tx)
        if checked.code == 0:
            application.retract(tx)
        return _checked(checked.code, checked.message, checked.error_code, checked.family)

    def unconfirmed_txs(self, limit: int | None) -> Document:
        most = PER_PAGE if limit is None or limit < 1 else min(limit, PER_PAGE_MAX)
        waiting = self._mempool.transactions()
        shown = [base64.b64encode(tx).decode() for tx in waiting[:most]]
        return _pool(len(shown), waiting) | {"txs": shown}

    def num_unconfirmed_txs(self) -> Document:
        waiting = self._mempool.transactions()
        return _pool(len(waiting), waiting) | {"txs": None}

    # --- finding ---

    def tx(self, hash_: bytes, prove: bool) -> Document:
        result = self._reader.executor.store.tx_result(hash_)
        found = None if result is None else self._found((result.height, result.index), prove, result)
        if found is None:
            raise NotFound(f"tx ({hex_of(hash_[:64])}) not found", code="no_tx")
        return found

    async def tx_search(
        self, query: str, prove: bool, page: int | None, per_page: int | None, order_by: str
    ) -> Document:
        newest_first = descending(order_by, default=False)
        places = await self._search.transactions(query)
        shown = (places[::-1] if newest_first else places)[page_of(page, per_page, len(places))]
        txs = []
        for place in shown:
            found = self._found(place, prove)
            await asyncio.sleep(0)  # room for consensus
            if found is not None:
                txs.append(found)
        return {"txs": txs, "total_count": str(len(places))}

    # --- the state ---

    def abci_info(self) -> Document:
        chain = self._reader.chain
        info: Document = {"data": "talkoo", "version": chain.chain_id}
        if chain.last_height:
            info |= {"last_block_height": str(chain.last_height), "last_block_app_hash": base64_of(chain.app_hash)}
        return {"response": info}

    def abci_query(self, path: str, data: bytes, height: int, prove: bool) -> Document:
        found = answer(self._reader.executor.application, path, data, height, prove)
        ops = [{"type": op.type, "key": base64_of(op.key), "data": base64_of(op.data)} for op in found.proof_ops]
        return {
            "response": {
                "code": found.code,
                "log": found.log,
                "info": "",
                "index": "0",
                "key": base64_of(found.key),
                "value": base64_of(found.value),
                "proofOps": {"ops": ops} if ops else None,
                "height": str(found.height),
                "codespace": "",
            }
        }

    # --- inside ---

    async def _submit(self, tx: bytes) -> Document:
        """What CheckTx says. Raises where the node takes none now: catching up, or full."""
        if self._engine.catching_up:
            raise Unavailable("endpoint is closed while node is catching up", code="catching_up")
        (refused,) = await self._engine.submit((tx,))
        if refused is None:
            return _checked(0, "", "", "")
        if isinstance(refused, Exhausted | Unavailable):
            raise refused
        return _refused(tx, refused)

    async def _final(self, tx_hash: bytes) -> service_pb2.TxResult:
        while True:
            result = self._reader.executor.store.tx_result(tx_hash)
            if result is not None:
                return result
            await self._reader.executor.decided()

    def _found(self, place: Place, prove: bool, result: service_pb2.TxResult | None = None) -> Document | None:
        height, index = place
        read = self._reader.block(height)
        if read is None:
            return None
        txs = read.block.data.txs
        found: Document = {
            "hash": hex_of(hashlib.sha256(txs[index]).digest()),
            "height": str(height),
            "index": index,
            "tx_result": result_document(read.results[index] if result is None else result),
            "tx": base64.b64encode(txs[index]).decode(),
        }
        if prove:
            found["proof"] = proof_document(read.block.header.data_hash, txs[index], read.proofs[index])
        return found


def _checked(code: int, log: str, info: str, codespace: str) -> Document:
    return {
        "code": code,
        "data": None,
        "log": log,
        "info": info,
        "gas_wanted": "0",
        "gas_used": "0",
        "events": [],
        "codespace": codespace,
    }


def _refused(tx: bytes, error: TalkooError) -> Document:
    result = failed(hashlib.sha256(tx).digest(), error)
    return _checked(result.code, result.message, result.error_code, result.family)


def _taken(tx: bytes, checked: Document) -> Document:
    return {
        "code": checked["code"],
        "data": "",
        "log": checked["log"],
        "codespace": checked["codespace"],
        "hash": hex_of(hashlib.sha256(tx).digest()),
    }


def _pool(shown: int, waiting: list[bytes]) -> Document:
    return {"n_txs": str(shown), "total": str(len(waiting)), "total_bytes": str(sum(map(len, waiting)))}
