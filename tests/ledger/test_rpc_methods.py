"""The RPC's answers of one node's chain, without network: methods, parameters, errors, bounds."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_consensus.chain import make_block
from talkoo_consensus.encoding import block_id_of, decode_block, encode_commit
from talkoo_consensus.types import BlockIdFlag, Commit, CommitSig
from talkoo_ledger.comet.documents import block_of, commit_of
from talkoo_ledger.embedded import EmbeddedEngine
from talkoo_ledger.executor import Executor
from talkoo_ledger.mempool import Mempool
from talkoo_ledger.node import Node
from talkoo_ledger.rpc.calls import MAX_BATCH
from talkoo_ledger.rpc.routes import PARAMETERS
from talkoo_ledger.rpc.server import MAX_BODY_BYTES
from talkoo_ledger.rpc.service import make_app
from talkoo_ledger.settings import LedgerSettings
from talkoo_ledger.sign_state import Signer
from talkoo_ledger.wal import WriteAheadLog

from talkoo_core.merkle import Proof
from talkoo_runtime.clock import SystemClock
from talkoo_runtime.disk import FolderDisk
from talkoo_runtime.transactions import sign_transaction
from talkoo_sim.ledger_chain import CHAIN_ID, address, key_of, make_genesis

FEE_UTLK = 1_000
KEY = key_of("north-consensus")
SHORT = {"unbonding_blocks": 4, "audit_deadline_blocks": 2, "max_audit_extensions": 0}
"""A chain that looks back so few blocks that a node may keep five."""


def transfer(nonce: int, sender: str = "alice", amount_utlk: int = 5) -> bytes:
    message = tx_pb2.Transfer(to=address("bob"), amount_utlk=amount_utlk)
    return sign_transaction(key_of(sender), CHAIN_ID, nonce, FEE_UTLK, message)


class Chain:
    """A node that never runs: blocks are decided by the test, their commits' signatures are made up."""

    def __init__(self, folder: Path, retain_blocks: int = 0, **params: int) -> None:
        genesis = make_genesis(**params)
        self.executor = Executor(genesis, folder, SystemClock(), retain_blocks, index_events=True)
        values = dict.fromkeys(("federation", "certificate", "private_key", "trust_bundle", "genesis"), "x")
        self.settings = LedgerSettings(
            **values,
            organization="north",
            name="north-ledger",
            listen="127.0.0.1:1",
            state_dir=str(folder),
            consensus_key="x",
            rpc_listen="127.0.0.1:2",
        )
        self.node = Node(
            self.settings,
            self.executor,
            Signer(KEY, CHAIN_ID, FolderDisk(folder)),
            KEY.public.address,
            WriteAheadLog(FolderDisk(folder / "wal")),
            Mempool(self.executor.application),
            SystemClock(),
        )
        app, self.subscriptions = make_app(self.settings, self.node, EmbeddedEngine(self.node), KEY.public)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node")

    def decide(self, *txs: bytes) -> None:
        chain = self.executor.chain
        block = make_block(
            chain, txs, self.executor.last_commit(), 1_790_000_000 * 10**9, chain.validators.proposer.address
        )
        places = tuple(CommitSig(BlockIdFlag.COMMIT, v.address, 1, bytes(64)) for v in chain.validators.validators)
        self.executor.execute(0, block_id_of(block), block, Commit(chain.height, 0, block_id_of(block), places))

    async def get(self, method: str, **given: Any) -> Any:
        """The result of a call by URI; integers and booleans bare, bytes as 0x…, texts quoted."""
        parameters = {name: _uri(value) for name, value in given.items()}
        return (await self.http.get(f"/{method}", params=parameters)).json()["result"]

    async def refused(self, method: str, **given: str) -> tuple[int, str]:
        """Code and data of the error; the parameters as they stand in the URI."""
        error = (await self.http.get(f"/{method}", params=given)).json()["error"]
        return error["code"], error.get("data", "")

    async def post(self, body: Any) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self.http.post("/", content=content)
        return answer.json() if answer.content else None

    async def call(self, method: str, **params: Any) -> Any:
        return await self.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})


def _uri(value: Any) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else json.dumps(value)


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Chain]:
    """Four blocks, the second with two transactions, the third with one."""
    made = Chain(tmp_path)
    made.decide()
    made.decide(transfer(0), transfer(1, amount_utlk=700))
    made.decide(transfer(0, "bob", amount_utlk=9))
    made.decide()
    yield made
    await made.http.aclose()
    made.executor.store.close()


async def test_blocks_and_commits_read_back_are_those_of_the_store(chain: Chain) -> None:
    for height in (1, 2, 3, 4):
        stored = chain.executor.store.block(height)
        block = decode_block(stored.block)
        shown = await chain.get("block", height=height)
        assert block_of(shown["block"]) == block
        assert shown["block_id"]["hash"] == block_id_of(block).hash.hex().upper()
        assert await chain.get("block_by_hash", hash=block_id_of(block).hash) == shown
        assert (await chain.get("header", height=height))["header"] == shown["block"]["header"]
        assert (await chain.get("header_by_hash", hash=block_id_of(block).hash))["header"] == shown["block"]["header"]
        commit = await chain.get("commit", height=height)
        assert commit["signed_header"]["header"] == shown["block"]["header"]
        assert encode_commit(commit_of(commit["signed_header"]["commit"])) == stored.commit
        assert commit["canonical"] is (height < 4)
    assert await chain.get("block") == await chain.get("block", height=4)


async def test_the_canonical_commit_is_the_one_in_the_next_block(chain: Chain) -> None:
    shown = await chain.get("commit", height=3)
    following = decode_block(chain.executor.store.block(4).block)
    assert commit_of(shown["signed_header"]["commit"]) == following.last_commit


async def test_an_unknown_hash_is_no_block_and_no_header(chain: Chain) -> None:
    assert await chain.get("header_by_hash", hash=bytes(32)) == {"header": None}
    shown = await chain.get("block_by_hash", hash=bytes(32))
    assert shown == {"block_id": {"hash": "", "parts": {"total": 0, "hash": ""}}, "block": None}


async def test_blockchain_shows_the_newest_first_within_its_bounds(chain: Chain) -> None:
    shown = await chain.get("blockchain")
    assert [meta["header"]["height"] for meta in shown["block_metas"]] == ["4", "3", "2", "1"]
    assert [meta["num_txs"] for meta in shown["block_metas"]] == ["0", "1", "2", "0"]
    assert shown["block_metas"][0]["block_size"] == str(len(chain.executor.store.block(4).block))
    some = await chain.get("blockchain", minHeight=2, maxHeight=3)
    assert [meta["header"]["height"] for meta in some["block_metas"]] == ["3", "2"]
    for _ in range(25):
        chain.decide()
    assert len((await chain.get("blockchain"))["block_metas"]) == 20
    assert await chain.refused("blockchain", minHeight="3", maxHeight="2") == (
        -32603,
        "min height 3 can't be greater than max height 2",
    )


async def test_validators_have_their_priorities_at_each_height_and_come_in_pages(chain: Chain) -> None:
    for height in (1, 2, 3, 4, 5):
        expected = chain.executor.store.validators(height) or chain.executor.chain.validators
        shown = await chain.get("validators", height=height)
        assert [
            (bytes.fromhex(v["address"]), int(v["voting_power"]), int(v["proposer_priority"]))
            for v in shown["validators"]
        ] == [(v.address, v.power, v.proposer_priority) for v in expected.validators]
        assert (shown["count"], shown["total"], shown["block_height"]) == ("4", "4", str(height))
    pages = [(await chain.get("validators", page=page, per_page=3))["validators"] for page in (1, 2)]
    assert [len(page) for page in pages] == [3, 1]
    assert pages[0] + pages[1] == (await chain.get("validators"))["validators"]
    assert (await chain.get("validators"))["block_height"] == "5"
    assert await chain.refused("validators", page="3", per_page="3") == (
        -32603,
        "page should be within [1, 2] range, given 3",
    )


async def test_heights_beyond_the_chain_are_refused_in_the_words_that_light_clients_read(chain: Chain) -> None:
    for method in ("block", "header", "commit", "block_results"):
        assert await chain.refused(method, height="5") == (
            -32603,
            "height 5 must be less than or equal to the current blockchain height 4",
        )
        assert await chain.refused(method, height="0") == (-32603, "height must be greater than 0, but got 0")


async def test_pruned_heights_are_refused_in_the_words_that_light_clients_read(tmp_path: Path) -> None:
    chain = Chain(tmp_path, retain_blocks=5, **SHORT)
    for nonce in range(8):
        chain.decide(transfer(nonce))
    try:
        assert await chain.refused("commit", height="3") == (-32603, "height 3 is not available, lowest height is 4")
        assert (await chain.get("status"))["sync_info"]["earliest_block_height"] == "4"
        # What was pruned is found no more, neither by its hash nor by its events.
        assert (await chain.get("tx_search", query="tx.height > 0"))["total_count"] == "5"
        assert (await chain.get("block_search", query="block.height < 5"))["total_count"] == "1"
        _, words = await chain.refused("tx", hash=f"0x{hashlib.sha256(transfer(0)).hexdigest()}")
        assert "not found" in words
    finally:
        chain.executor.store.close()


async def test_results_are_those_of_the_store_with_the_blocks_own_events(chain: Chain) -> None:
    stored = chain.executor.store.block(2)
    shown = await chain.get("block_results", height=2)
    assert shown["height"] == "2"
    assert [result["code"] for result in shown["txs_results"]] == [0, 0]
    told = sum(len(result["events"]) for result in shown["txs_results"])
    assert told + len(shown["finalize_block_events"] or ()) == len(stored.events.events)
    assert base64.b64decode(shown["app_hash"]).hex() == stored.events.app_hash.hex()
    following = decode_block(chain.executor.store.block(3).block)
    assert base64.b64decode(shown["app_hash"]) == following.header.app_hash
    assert (await chain.get("block_results", height=1))["txs_results"] is None


async def test_a_transaction_is_found_by_its_hash_with_a_proof_against_the_header(chain: Chain) -> None:
    tx = transfer(1, amount_utlk=700)
    shown = await chain.get("tx", hash=hashlib.sha256(tx).digest(), prove=True)
    assert (shown["height"], shown["index"], base64.b64decode(shown["tx"])) == ("2", 1, tx)
    assert shown["tx_result"]["code"] == 0
    given = shown["proof"]["proof"]
    proof = Proof(
        int(given["total"]),
        int(given["index"]),
        base64.b64decode(given["leaf_hash"]),
        tuple(base64.b64decode(aunt) for aunt in given["aunts"]),
    )
    header = decode_block(chain.executor.store.block(2).block).header
    assert proof.verify(header.data_hash, hashlib.sha256(tx).digest())
    assert shown["proof"]["root_hash"] == header.data_hash.hex().upper()
    assert "proof" not in await chain.get("tx", hash=hashlib.sha256(tx).digest())
    assert (await chain.call("tx", hash=base64.b64encode(hashlib.sha256(tx).digest()).decode()))["result"]["index"] == 1


@pytest.mark.parametrize(
    ("query", "places"),
    [
        ("tx.height = 2", [("2", 0), ("2", 1)]),
        ("tx.height > 2", [("3", 0)]),
        ("tx.height >= 2 AND tx.height < 3", [("2", 0), ("2", 1)]),
        ("transfer.amount_utlk = 700", [("2", 1)]),
        ("transfer.amount_utlk = '700'", [("2", 1)]),
        ("transfer.amount_utlk > 5 AND tx.height > 1", [("2", 1), ("3", 0)]),
        ("transfer.amount_utlk EXISTS AND tx.height <= 2", [("2", 0), ("2", 1)]),
        ("transfer.amount_utlk CONTAINS '0'", [("2", 1)]),
        ("transfer.amount_utlk = 7", []),
        ("transfer.nothing EXISTS", []),
        (f"tx.hash = '{hashlib.sha256(transfer(0)).hexdigest()}'", [("2", 0)]),
        (f"tx.hash = '{hashlib.sha256(transfer(0)).hexdigest().upper()}' AND tx.height = 3", []),
    ],
)
async def test_transactions_are_found_by_their_events(chain: Chain, query: str, places: list[tuple[str, int]]) -> None:
    shown = await chain.get("tx_search", query=query)
    assert [(tx["height"], tx["index"]) for tx in shown["txs"]] == places
    assert shown["total_count"] == str(len(places))
    backwards = await chain.get("tx_search", query=query, order_by="desc")
    assert [(tx["height"], tx["index"]) for tx in backwards["txs"]] == places[::-1]


async def test_searches_come_in_pages_and_with_proofs(chain: Chain) -> None:
    first = await chain.get("tx_search", query="tx.height > 0", per_page=2, prove=True)
    second = await chain.get("tx_search", query="tx.height > 0", per_page=2, page=2, prove=True)
    assert [tx["height"] for tx in first["txs"] + second["txs"]] == ["2", "2", "3"]
    assert all(tx["proof"]["proof"]["total"] for tx in first["txs"])
    blocks = await chain.get("block_search", query="block.height > 1 AND block.height < 4")
    assert [each["block"]["header"]["height"] for each in blocks["blocks"]] == ["3", "2"]


@pytest.mark.parametrize(
    "query",
    ["", "foo", "tx.height", "tx.height =", "tx.height = 'a' AND", "a.b > 'text'", "a.b CONTAINS 5", "tx.hash = 5",
     "tx.hash = 'zz'", "a = 1 OR b = 2", "'x' = 1", "a = $", "a = TIME yesterday",
     " AND ".join(["a = 1"] * 17), "a" * 600],
)  # fmt: skip
async def test_a_query_that_cannot_be_read_is_refused_with_words(chain: Chain, query: str) -> None:
    code, words = await chain.refused("tx_search", query=json.dumps(query))
    assert code == -32603
    assert words


async def test_a_transaction_is_checked_without_being_taken(chain: Chain) -> None:
    good, future = transfer(2), transfer(7)
    assert (await chain.get("check_tx", tx=good))["code"] == 0
    assert (await chain.get("check_tx", tx=good))["code"] == 0
    assert (await chain.get("check_tx", tx=future))["code"] != 0
    assert (await chain.get("num_unconfirmed_txs"))["total"] == "0"


async def test_a_transaction_is_taken_once_and_waits_in_the_mempool(chain: Chain) -> None:
    tx = transfer(2)
    taken = await chain.call("broadcast_tx_sync", tx=base64.b64encode(tx).decode())
    assert taken["result"] == {
        "code": 0,
        "data": "",
        "log": "",
        "codespace": "",
        "hash": hashlib.sha256(tx).hexdigest().upper(),
    }
    assert (await chain.get("broadcast_tx_sync", tx=tx))["code"] == 0
    pool = await chain.get("unconfirmed_txs")
    assert [base64.b64decode(each) for each in pool["txs"]] == [tx]
    assert (pool["n_txs"], pool["total"], pool["total_bytes"]) == ("1", "1", str(len(tx)))


async def test_a_refused_transaction_is_told_with_code_codespace_and_words(chain: Chain) -> None:
    refused = await chain.get("broadcast_tx_sync", tx=transfer(0))
    assert refused["code"] > 0
    assert refused["codespace"] == "conflict"
    assert "nonce" in refused["log"]
    assert (await chain.get("broadcast_tx_commit", tx=b"no transaction"))["check_tx"]["code"] > 0
    assert (await chain.get("broadcast_tx_async", tx=transfer(0)))["code"] == 0


async def test_the_state_is_asked_by_path_and_answers_with_its_height(chain: Chain) -> None:
    alice = address("alice")
    response = (await chain.get("abci_query", path="/store/accounts/key", data=alice))["response"]
    expected = chain.executor.application.query("accounts", alice).value
    assert (response["code"], response["height"]) == (0, "4")
    assert base64.b64decode(response["value"]) == expected
    assert (await chain.get("abci_query", path="/store/accounts/key", data="nobody"))["response"]["value"] is None
    for path, data, height in (("/nothing", "", 0), ("/store/none/key", "", 0), ("/store/accounts/key", alice, 2)):
        refused = (await chain.get("abci_query", path=path, data=data, height=height))["response"]
        assert refused["code"] > 0
        assert refused["log"]
    info = (await chain.get("abci_info"))["response"]
    assert (info["last_block_height"], base64.b64decode(info["last_block_app_hash"])) == (
        "4",
        chain.executor.chain.app_hash,
    )


async def test_status_genesis_and_parameters_say_what_the_chain_is(chain: Chain) -> None:
    status = await chain.get("status")
    assert status["node_info"]["network"] == CHAIN_ID
    assert status["sync_info"]["latest_block_hash"] == chain.executor.chain.last_block_id.hash.hex().upper()
    assert status["validator_info"]["address"] == KEY.public.address.hex().upper()
    genesis = (await chain.get("genesis"))["genesis"]
    assert genesis["chain_id"] == CHAIN_ID
    first = chain.executor.store.validators(1)
    assert first is not None
    assert {v["address"] for v in genesis["validators"]} == {v.address.hex().upper() for v in first.validators}
    header = decode_block(chain.executor.store.block(1).block).header
    assert genesis["app_hash"] == header.app_hash.hex().upper()
    chunk = await chain.get("genesis_chunked")
    assert json.loads(base64.b64decode(chunk["data"])) == genesis
    assert await chain.refused("genesis_chunked", chunk="1") == (-32603, "there are 1 chunks, 1 is invalid")
    params = await chain.get("consensus_params")
    assert params == {"block_height": "5", "consensus_params": genesis["consensus_params"]}
    assert await chain.get("health") == {}
    assert (await chain.get("net_info"))["n_peers"] == "0"


async def test_a_batch_is_answered_in_order_without_its_notifications(chain: Chain) -> None:
    asked = [
        {"jsonrpc": "2.0", "id": "a", "method": "header", "params": ["2"]},
        {"jsonrpc": "2.0", "method": "health"},
        {"jsonrpc": "2.0", "id": 2, "method": "nothing"},
        {"jsonrpc": "2.0", "id": 3, "method": "header", "params": {"height": "9"}},
    ]
    answers = await chain.post(asked)
    assert [answer["id"] for answer in answers] == ["a", 2, 3]
    assert answers[0]["result"]["header"]["height"] == "2"
    assert answers[1]["error"] == {"code": -32601, "message": "Method not found"}
    assert answers[2]["error"]["code"] == -32603
    many = await chain.post([asked[0]] * (MAX_BATCH + 1))
    assert many["error"]["code"] == -32600
    assert await chain.post([]) is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b'"x"', -32700),
        (b"[1]", -32700),
        (b"[" * 100_000, -32700),
        (b'{"id":' + b"9" * 5_000 + b"}", -32700),
        (b'{"jsonrpc":"2.0","id":{},"method":"health"}', -32700),
        (b'{"jsonrpc":"2.0","id":true,"method":"health"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32700),
        (b"\xff\xfe", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"subscribe","params":{"query":"tm.event=\'Tx\'"}}', -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":7}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":["1","2"]}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":"x"}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":1.5}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":"9223372036854775808"}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"tx","params":{"hash":"!"}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"tx","params":{"hash":"AA==","prove":1}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"header_by_hash","params":{"hash":"abc"}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"broadcast_tx_sync","params":{"tx":{}}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"broadcast_evidence","params":{"evidence":"x"}}', -32603),
        (b'{"jsonrpc":"2.0","id":1,"method":"broadcast_evidence","params":{"evidence":'
         b'{"type":"tendermint/DuplicateVoteEvidence","value":{"vote_a":[],"vote_b":7}}}}', -32603),
        (b" " * (MAX_BODY_BYTES + 1), -32600),
    ],
    ids=range(22),
)  # fmt: skip
async def test_a_bad_body_is_answered_by_a_typed_error(chain: Chain, body: bytes, code: int) -> None:
    assert (await chain.post(body))["error"]["code"] == code
    assert await chain.get("health") == {}


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("block?height=abc", -32602),
        ("block?height=0x12", -32602),
        ("block?height=99999999999999999999999", -32602),
        ("block?height=%FF", -32600),
        ("tx?hash=0xzz", -32602),
        ("tx?hash=abc", -32602),
        ("tx?hash=0x00&prove=maybe", -32602),
        ("abci_query?path=/store", -32602),
        ("abci_query?path=0xff", -32602),
        ("broadcast_evidence?evidence=%22x%22", -32603),
        ("subscribe?query=%22x%22", -32601),
        ("health?" + "&".join(f"a{n}=1" for n in range(40)), -32600),
    ],
)
async def test_a_bad_uri_is_answered_by_a_typed_error(chain: Chain, uri: str, code: int) -> None:
    assert (await chain.http.get(f"/{uri}")).json()["error"]["code"] == code


async def test_only_known_methods_have_an_address_and_a_browser_sees_them(chain: Chain) -> None:
    assert (await chain.http.get("/nothing")).status_code == 404
    assert (await chain.http.put("/health")).status_code == 405
    page = (await chain.http.get("/")).text
    assert [name for name in PARAMETERS if f"/{name}" not in page] == []
    assert (await chain.http.get("/v1/health")).json() == {"jsonrpc": "2.0", "id": -1, "result": {}}
    form = await chain.http.post("/block", data={"height": "2"})
    assert form.json()["result"]["block"]["header"]["height"] == "2"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({each.name for parameters in PARAMETERS.values() for each in parameters})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from([name for name in PARAMETERS if name != "broadcast_tx_commit"]),
    params=st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=4) | JSON_VALUES,
)
async def test_whatever_the_parameters_are_the_answer_is_a_result_or_a_typed_error(
    chain: Chain, method: str, params: Any
) -> None:
    answer = await chain.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    assert ("result" in answer) != ("error" in answer)
    if "error" in answer:
        assert answer["error"]["code"] in (-32602, -32603)
        assert "its log says why" not in answer["error"]["data"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | JSON_VALUES.map(lambda v: json.dumps(v).encode())
)
async def test_whatever_a_body_is_the_node_answers(chain: Chain, body: bytes) -> None:
    assert (await chain.http.post("/", content=body)).status_code in (200, 500)
