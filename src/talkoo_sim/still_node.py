"""A ledger node that never runs: the test decides its blocks, and asks its RPC without network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from talkoo_api.ledger.v1 import tx_pb2
from talkoo_consensus.chain import make_block
from talkoo_consensus.encoding import block_id_of
from talkoo_consensus.types import BlockIdFlag, Commit, CommitSig
from talkoo_ledger.embedded import EmbeddedEngine
from talkoo_ledger.executor import Executor
from talkoo_ledger.mempool import Mempool
from talkoo_ledger.node import Node
from talkoo_ledger.rpc.service import make_app
from talkoo_ledger.settings import LedgerSettings
from talkoo_ledger.sign_state import Signer
from talkoo_ledger.wal import WriteAheadLog

from talkoo_runtime.clock import SystemClock
from talkoo_runtime.disk import FolderDisk
from talkoo_runtime.transactions import sign_transaction
from talkoo_sim.ledger_chain import CHAIN_ID, address, key_of, make_genesis

FEE_UTLK = 1_000
NODE_KEY = key_of("north-consensus")
BLOCK_TIME_NS = 1_790_000_000 * 10**9


def transfer(nonce: int, sender: str = "alice", amount_utlk: int = 5) -> bytes:
    message = tx_pb2.Transfer(to=address("bob"), amount_utlk=amount_utlk)
    return sign_transaction(key_of(sender), CHAIN_ID, nonce, FEE_UTLK, message)


class StillNode:
    """A node that never runs: blocks are decided by the test, their commits' signatures are made up."""

    def __init__(self, folder: Path, retain_blocks: int = 0, index_events: bool = True, **params: int) -> None:
        genesis = make_genesis(**params)
        self.executor = Executor(genesis, folder, SystemClock(), retain_blocks, index_events)
        self.settings = LedgerSettings(
            federation="test",
            organization="north",
            name="north-ledger",
            listen="127.0.0.1:1",
            state_dir=str(folder),
            certificate="none",
            private_key="none",
            trust_bundle="none",
            genesis="none",
            consensus_key="none",
            rpc_listen="127.0.0.1:2",
        )
        self.node = Node(
            self.settings,
            self.executor,
            Signer(NODE_KEY, CHAIN_ID, FolderDisk(folder)),
            NODE_KEY.public.address,
            WriteAheadLog(FolderDisk(folder / "wal")),
            Mempool(self.executor.application),
            SystemClock(),
        )
        self.app, self.subscriptions = make_app(self.settings, self.node, EmbeddedEngine(self.node), NODE_KEY.public)

    def decide(self, *txs: bytes) -> None:
        chain = self.executor.chain
        block = make_block(chain, txs, self.executor.last_commit(), BLOCK_TIME_NS, chain.validators.proposer.address)
        places = tuple(CommitSig(BlockIdFlag.COMMIT, v.address, 1, bytes(64)) for v in chain.validators.validators)
        self.executor.execute(0, block_id_of(block), block, Commit(chain.height, 0, block_id_of(block), places))

    def close(self) -> None:
        self.executor.store.close()

    async def http(
        self, method: str, path: str, query: str = "", body: bytes = b"", content_type: str = ""
    ) -> tuple[int, bytes]:
        """Status and body, as the server would send them."""
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", content_type.encode())]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
        await self.app(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]

    async def get(self, method: str, **given: Any) -> Any:
        """The result of a call by URI; integers and booleans bare, bytes as 0x…, texts quoted."""
        query = urlencode({name: _uri(value) for name, value in given.items()})
        return json.loads((await self.http("GET", f"/{method}", query))[1])["result"]

    async def refused(self, method: str, **given: str) -> tuple[int, str]:
        """Code and data of the error; the parameters as they stand in the URI."""
        error = json.loads((await self.http("GET", f"/{method}", urlencode(given)))[1])["error"]
        return error["code"], error.get("data", "")

    async def post(self, body: Any) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = (await self.http("POST", "/", body=content))[1]
        return json.loads(answer) if answer else None

    async def call(self, method: str, **params: Any) -> Any:
        return await self.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})


def begun(folder: Path) -> StillNode:
    """Four blocks, the second with two transactions, the third with one."""
    made = StillNode(folder)
    made.decide()
    made.decide(transfer(0), transfer(1, amount_utlk=700))
    made.decide(transfer(0, "bob", amount_utlk=9))
    made.decide()
    return made


def _uri(value: Any) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else json.dumps(value)
