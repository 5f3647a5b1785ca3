"""The RPC's answers of one node's chain, without network: methods, parameters, errors, bounds."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from talkoo_consensus.encoding import block_id_of, decode_block, encode_commit
from talkoo_ledger.comet.documents import block_of, commit_of
from talkoo_ledger.event_index import EventSearch
from talkoo_ledger.event_query import parse_query
from talkoo_ledger.ics23 import ProofOp, verify_state
from talkoo_ledger.rpc.routes import PARAMETERS

from talkoo_core.merkle import Proof
from talkoo_sim.ledger_chain import CHAIN_ID, address
from talkoo_sim.still_node import NODE_KEY, StillNode, begun, transfer

SHORT = {"unbonding_blocks": 4, "audit_deadline_blocks": 2, "max_audit_extensions": 0}
"""A chain that looks back so few blocks that a node may keep five."""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[StillNode]:
    made = begun(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StillNode]:
    """The same for many tests that decide nothing."""
    made = begun(tmp_path_factory.mktemp("chain"))
    yield made
    made.close()


async def test_blocks_and_commits_read_back_are_those_of_the_store(still: StillNode) -> None:
    for height in (1, 2, 3, 4):
        stored = still.executor.store.block(height)
        block = decode_block(stored.block)
        shown = await still.get("block", height=height)
        assert block_of(shown["block"]) == block
        assert shown["block_id"]["hash"] == block_id_of(block).hash.hex().upper()
        assert await still.get("block_by_hash", hash=block_id_of(block).hash) == shown
        assert (await still.get("header", height=height))["header"] == shown["block"]["header"]
        assert (await still.get("header_by_hash", hash=block_id_of(block).hash))["header"] == shown["block"]["header"]
        commit = await still.get("commit", height=height)
        assert commit["signed_header"]["header"] == shown["block"]["header"]
        assert encode_commit(commit_of(commit["signed_header"]["commit"])) == stored.commit
        assert commit["canonical"] is (height < 4)
    assert await still.get("block") == await still.get("block", height=4)


async def test_the_canonical_commit_is_the_one_in_the_next_block(still: StillNode) -> None:
    shown = await still.get("commit", height=3)
    following = decode_block(still.executor.store.block(4).block)
    assert commit_of(shown["signed_header"]["commit"]) == following.last_commit


async def test_an_unknown_hash_is_no_block_and_no_header(still: StillNode) -> None:
    assert await still.get("header_by_hash", hash=bytes(32)) == {"header": None}
    shown = await still.get("block_by_hash", hash=bytes(32))
    assert shown == {"block_id": {"hash": "", "parts": {"total": 0, "hash": ""}}, "block": None}


async def test_blockchain_shows_the_newest_first_within_its_bounds(chain: StillNode) -> None:
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


async def test_validators_have_their_priorities_at_each_height_and_come_in_pages(still: StillNode) -> None:
    for height in (1, 2, 3, 4, 5):
        expected = still.executor.store.validators(height) or still.executor.chain.validators
        shown = await still.get("validators", height=height)
        assert [
            (bytes.fromhex(v["address"]), int(v["voting_power"]), int(v["proposer_priority"]))
            for v in shown["validators"]
        ] == [(v.address, v.power, v.proposer_priority) for v in expected.validators]
        assert (shown["count"], shown["total"], shown["block_height"]) == ("4", "4", str(height))
    pages = [(await still.get("validators", page=page, per_page=3))["validators"] for page in (1, 2)]
    assert [len(page) for page in pages] == [3, 1]
    assert pages[0] + pages[1] == (await still.get("validators"))["validators"]
    assert (await still.get("validators"))["block_height"] == "5"
    assert await still.refused("validators", page="3", per_page="3") == (
        -32603,
        "page should be within [1, 2] range, given 3",
    )


async def test_heights_beyond_the_chain_are_refused_in_the_words_that_light_clients_read(still: StillNode) -> None:
    for method in ("block", "header", "commit", "block_results"):
        assert await still.refused(method, height="5") == (
            -32603,
            "height 5 must be less than or equal to the current blockchain height 4",
        )
        assert await still.refused(method, height="0") == (-32603, "height must be greater than 0, but got 0")


async def test_pruned_heights_are_refused_in_the_words_that_light_clients_read(tmp_path: Path) -> None:
    chain = StillNode(tmp_path, retain_blocks=5, **SHORT)
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


async def test_a_node_that_began_with_a_snapshot_answers_for_what_it_has(still: StillNode, tmp_path: Path) -> None:
    late = StillNode(tmp_path)
    for executor, last in ((late.executor, "0"), (still.executor, "4")):
        if executor is still.executor:
            late.executor.adopt(list(executor.application.snapshot()), executor.chain, executor.last_commit())
        info = (await late.get("status"))["sync_info"]
        assert (info["latest_block_height"], info["earliest_block_height"]) == (last, "0")
        for method in PARAMETERS:
            answer = await late.call(method)
            assert "its log says why" not in answer.get("error", {}).get("data", ""), method
    assert (await late.get("commit"))["signed_header"] == {"header": None, "commit": None}
    late.decide()
    assert (await late.get("commit"))["signed_header"]["header"]["height"] == "5"
    assert (await late.refused("block", height="4"))[1] == "height 4 is not available, lowest height is 5"
    late.close()


def test_a_node_without_rpc_writes_no_index_and_what_an_earlier_one_wrote_goes_with_its_blocks(tmp_path: Path) -> None:
    made = StillNode(tmp_path, retain_blocks=5, **SHORT)
    for nonce in range(4):
        made.decide(transfer(nonce))
    made.close()
    search = EventSearch(tmp_path / "ledger.db")
    everything = parse_query("tx.height > 0")
    assert [height for height, _ in search.transactions(everything)] == [1, 2, 3, 4]
    without = StillNode(tmp_path, retain_blocks=5, index_events=False, **SHORT)
    for nonce in range(4, 7):
        without.decide(transfer(nonce))
    assert [height for height, _ in search.transactions(everything)] == [3, 4]
    for nonce in range(7, 9):
        without.decide(transfer(nonce))
    assert search.transactions(everything) == []
    without.close()


async def test_results_are_those_of_the_store_with_the_blocks_own_events(still: StillNode) -> None:
    stored = still.executor.store.block(2)
    shown = await still.get("block_results", height=2)
    assert shown["height"] == "2"
    assert [result["code"] for result in shown["txs_results"]] == [0, 0]
    told = sum(len(result["events"]) for result in shown["txs_results"])
    assert told + len(shown["finalize_block_events"] or ()) == len(stored.events.events)
    assert base64.b64decode(shown["app_hash"]).hex() == stored.events.app_hash.hex()
    following = decode_block(still.executor.store.block(3).block)
    assert base64.b64decode(shown["app_hash"]) == following.header.app_hash
    assert (await still.get("block_results", height=1))["txs_results"] is None


async def test_a_transaction_is_found_by_its_hash_with_a_proof_against_the_header(still: StillNode) -> None:
    tx = transfer(1, amount_utlk=700)
    shown = await still.get("tx", hash=hashlib.sha256(tx).digest(), prove=True)
    assert (shown["height"], shown["index"], base64.b64decode(shown["tx"])) == ("2", 1, tx)
    assert shown["tx_result"]["code"] == 0
    given = shown["proof"]["proof"]
    proof = Proof(
        int(given["total"]),
        int(given["index"]),
        base64.b64decode(given["leaf_hash"]),
        tuple(base64.b64decode(aunt) for aunt in given["aunts"]),
    )
    header = decode_block(still.executor.store.block(2).block).header
    assert proof.verify(header.data_hash, hashlib.sha256(tx).digest())
    assert shown["proof"]["root_hash"] == header.data_hash.hex().upper()
    assert "proof" not in await still.get("tx", hash=hashlib.sha256(tx).digest())
    assert (await still.call("tx", hash=base64.b64encode(hashlib.sha256(tx).digest()).decode()))["result"]["index"] == 1


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
async def test_transactions_are_found_by_their_events(
    still: StillNode, query: str, places: list[tuple[str, int]]
) -> None:
    shown = await still.get("tx_search", query=query)
    assert [(tx["height"], tx["index"]) for tx in shown["txs"]] == places
    assert shown["total_count"] == str(len(places))
    backwards = await still.get("tx_search", query=query, order_by="desc")
    assert [(tx["height"], tx["index"]) for tx in backwards["txs"]] == places[::-1]


async def test_searches_come_in_pages_and_with_proofs(still: StillNode) -> None:
    first = await still.get("tx_search", query="tx.height > 0", per_page=2, prove=True)
    second = await still.get("tx_search", query="tx.height > 0", per_page=2, page=2, prove=True)
    assert [tx["height"] for tx in first["txs"] + second["txs"]] == ["2", "2", "3"]
    assert all(tx["proof"]["proof"]["total"] for tx in first["txs"])
    blocks = await still.get("block_search", query="block.height > 1 AND block.height < 4")
    assert [each["block"]["header"]["height"] for each in blocks["blocks"]] == ["3", "2"]


@pytest.mark.parametrize(
    "query",
    ["", "foo", "tx.height", "tx.height =", "tx.height = 'a' AND", "a.b > 'text'", "a.b CONTAINS 5", "tx.hash = 5",
     "tx.hash = 'zz'", "a = 1 OR b = 2", "'x' = 1", "a = $", "a = TIME yesterday",
     " AND ".join(["a = 1"] * 17), "a" * 600],
)  # fmt: skip
async def test_a_query_that_cannot_be_read_is_refused_with_words(still: StillNode, query: str) -> None:
    code, words = await still.refused("tx_search", query=json.dumps(query))
    assert code == -32603
    assert words


async def test_a_transaction_is_checked_without_being_taken(still: StillNode) -> None:
    good, future = transfer(2), transfer(7)
    assert (await still.get("check_tx", tx=good))["code"] == 0
    assert (await still.get("check_tx", tx=good))["code"] == 0
    assert (await still.get("check_tx", tx=future))["code"] != 0
    assert (await still.get("num_unconfirmed_txs"))["total"] == "0"


async def test_a_transaction_is_taken_once_and_waits_in_the_mempool(chain: StillNode) -> None:
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


async def test_a_refused_transaction_is_told_with_code_codespace_and_words(chain: StillNode) -> None:
    refused = await chain.get("broadcast_tx_sync", tx=transfer(0))
    assert refused["code"] > 0
    assert refused["codespace"] == "conflict"
    assert "nonce" in refused["log"]
    assert (await chain.get("broadcast_tx_commit", tx=b"no transaction"))["check_tx"]["code"] > 0
    assert (await chain.get("broadcast_tx_async", tx=transfer(0)))["code"] == 0


async def test_the_state_is_asked_by_path_and_answers_with_its_height(still: StillNode) -> None:
    alice = address("alice")
    response = (await still.get("abci_query", path="/store/accounts/key", data=alice))["response"]
    expected = still.executor.application.query("accounts", alice).value
    assert (response["code"], response["height"]) == (0, "4")
    assert base64.b64decode(response["value"]) == expected
    assert (await still.get("abci_query", path="/store/accounts/key", data="nobody"))["response"]["value"] is None
    for path, data, height in (
        ("/nothing", alice, 0),
        ("/store/none/key", alice, 0),
        ("/store/accounts/key", "", 0),
        ("/store/accounts/key", alice, 2),
    ):
        refused = (await still.get("abci_query", path=path, data=data, height=height))["response"]
        assert refused["code"] > 0
        assert refused["log"]
    info = (await still.get("abci_info"))["response"]
    assert (info["last_block_height"], base64.b64decode(info["last_block_app_hash"])) == (
        "4",
        still.executor.chain.app_hash,
    )


async def test_a_value_and_its_absence_are_proven_against_the_next_header(chain: StillNode) -> None:
    shown: dict[str, Any] = {}
    for key in (address("alice"), "nobody"):
        shown[key] = (await chain.get("abci_query", path="/store/accounts/key", data=key, prove=True))["response"]
    chain.decide(transfer(2))
    header = (await chain.get("header", height=int(shown["nobody"]["height"]) + 1))["header"]
    for key, response in shown.items():
        ops = [
            ProofOp(op["type"], base64.b64decode(op["key"]), base64.b64decode(op["data"]))
            for op in response["proofOps"]["ops"]
        ]
        assert [op.type for op in ops] == ["ics23:smt", "ics23:simple"]
        value = None if response["value"] is None else base64.b64decode(response["value"])
        assert (value is None) == (key == "nobody")
        verify_state(bytes.fromhex(header["app_hash"]), "accounts", key, value, ops)


async def test_status_genesis_and_parameters_say_what_the_chain_is(still: StillNode) -> None:
    status = await still.get("status")
    assert status["node_info"]["network"] == CHAIN_ID
    assert status["sync_info"]["latest_block_hash"] == still.executor.chain.last_block_id.hash.hex().upper()
    assert status["validator_info"]["address"] == NODE_KEY.public.address.hex().upper()
    genesis = (await still.get("genesis"))["genesis"]
    assert genesis["chain_id"] == CHAIN_ID
    first = still.executor.store.validators(1)
    assert first is not None
    assert {v["address"] for v in genesis["validators"]} == {v.address.hex().upper() for v in first.validators}
    header = decode_block(still.executor.store.block(1).block).header
    assert genesis["app_hash"] == header.app_hash.hex().upper()
    chunk = await still.get("genesis_chunked")
    assert json.loads(base64.b64decode(chunk["data"])) == genesis
    assert await still.refused("genesis_chunked", chunk="1") == (-32603, "there are 1 chunks, 1 is invalid")
    params = await still.get("consensus_params")
    assert params == {"block_height": "5", "consensus_params": genesis["consensus_params"]}
    assert await still.get("health") == {}
    assert (await still.get("net_info"))["n_peers"] == "0"


async def test_only_known_methods_have_an_address_and_a_browser_sees_them(still: StillNode) -> None:
    assert (await still.http("GET", "/nothing"))[0] == 404
    assert (await still.http("PUT", "/health"))[0] == 405
    page = (await still.http("GET", "/"))[1].decode()
    assert [name for name in PARAMETERS if f"/{name}" not in page] == []
    assert json.loads((await still.http("GET", "/v1/health"))[1]) == {"jsonrpc": "2.0", "id": -1, "result": {}}
    _, form = await still.http("POST", "/block", body=b"height=2", content_type="application/x-www-form-urlencoded")
    assert json.loads(form)["result"]["block"]["header"]["height"] == "2"
