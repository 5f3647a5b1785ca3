"""Four real nodes over HTTP and websockets: their answers, the real CometBFT's beside them, and its light client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket as socketlib
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from talkoo_consensus.encoding import block_id_of, encode_evidence, header_hash, validators_hash, vote_sign_bytes
from talkoo_consensus.types import Block, BlockId, DuplicateVoteEvidence, SignedType, Vote
from talkoo_consensus.verify import verify_commit
from talkoo_ledger.comet.documents import block_of, commit_of
from talkoo_ledger.rpc.documents import evidence_document, update_document, validator_document
from talkoo_ledger.rpc.server import MAX_BODY_BYTES
from talkoo_ledger.rpc.subscriptions import MAX_PER_CLIENT
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from talkoo_core.signing import PrivateKey
from talkoo_sim.cometbft import cometbft_binary
from talkoo_sim.ledger_chain import CHAIN_ID, address, key_of
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.ports import free_ports
from talkoo_sim.rpc_nodes import DEADLINE_S, Nodes, Rpc, until
from talkoo_sim.tampering_proxy import TamperingProxy


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    ledgers = Ledgers(tmp_path_factory.mktemp("rpc"))
    rpcs = [Rpc(port) for port in free_ports(len(ledgers.names))]
    for name, rpc in zip(ledgers.names, rpcs, strict=True):
        ledgers.write_settings(name, rpc_listen=f"127.0.0.1:{rpc.port}")
    ledgers.start()
    try:
        for rpc in rpcs:
            until(lambda rpc=rpc: rpc.height() >= 4, "a node decides four blocks")
        yield Nodes(rpcs)
        assert all(process.poll() is None for process in ledgers.processes.values())
        assert not any("Traceback" in ledgers.log(name) for name in ledgers.names)
    finally:
        asyncio.run(ledgers.close())


# --- what they answer ---


def test_every_nodes_blocks_verify_by_the_validators_and_commits_it_shows(nodes: Nodes) -> None:
    last = min(rpc.height() for rpc in nodes.rpcs) - 1
    for height in range(1, last + 1):
        shown = [rpc.block(height) for rpc in nodes.rpcs]
        assert all(block == shown[0] for block in shown)
        commit = nodes.rpcs[0].get("commit", height=str(height))
        validators = nodes.rpcs[height % 4].validators(height)
        assert validators_hash(validators) == shown[0].header.validators_hash
        block_id = block_id_of(shown[0])
        assert block_id.hash == header_hash(shown[0].header)
        verify_commit(CHAIN_ID, validators, block_id, height, commit_of(commit["signed_header"]["commit"]))


def test_a_transaction_sent_to_one_node_is_found_at_another(nodes: Nodes) -> None:
    tx = nodes.transfer(4_321)
    final = nodes.rpcs[0].send(tx)
    assert (final["check_tx"]["code"], final["tx_result"]["code"]) == (0, 0)
    assert final["hash"] == hashlib.sha256(tx).hexdigest().upper()
    other = nodes.rpcs[2]
    until(lambda: other.height() >= int(final["height"]), "the other node decides the block")
    found = other.get("tx_search", query="transfer.amount_utlk = 4321")
    assert [(each["hash"], each["height"]) for each in found["txs"]] == [(final["hash"], final["height"])]
    balance = other.get("abci_query", path="/store/accounts/key", data=address("bob").encode().hex())
    assert balance["response"]["code"] == 0


def test_consensus_state_shows_the_height_under_way(nodes: Nodes) -> None:
    state = nodes.rpcs[0].get("consensus_state")["round_state"]
    height = int(state["height/round/step"].split("/")[0])
    assert 0 <= nodes.rpcs[0].height() + 1 - height <= 1
    assert len(state["height_vote_set"][0]["prevotes"]) == 4
    assert nodes.rpcs[0].get("net_info")["n_peers"] == "3"


# --- subscriptions ---


def next_of(socket: ClientConnection, id_: int) -> Any:
    """The next message for a subscription, or the answer to a call."""
    while True:
        message = json.loads(socket.recv(timeout=DEADLINE_S))
        if message.get("id") == id_:
            return message


def call(socket: ClientConnection, id_: int, method: str, **params: Any) -> Any:
    socket.send(json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}))
    return next_of(socket, id_)


def test_a_websocket_is_told_of_blocks_and_of_the_transactions_it_asked_for(nodes: Nodes) -> None:
    rpc = nodes.rpcs[1]
    with rpc.websocket() as socket:
        assert call(socket, 1, "subscribe", query="tm.event = 'NewBlock'") == {"jsonrpc": "2.0", "id": 1, "result": {}}
        call(socket, 2, "subscribe", query="tm.event = 'Tx' AND transfer.amount_utlk = 77")
        first, second = next_of(socket, 1)["result"], next_of(socket, 1)["result"]
        blocks = [block_of(each["data"]["value"]["block"]) for each in (first, second)]
        assert blocks[1].header.last_block_id == block_id_of(blocks[0])
        assert blocks == [rpc.block(block.header.height) for block in blocks]
        nodes.rpcs[0].send(nodes.transfer(76))
        tx = nodes.transfer(77)
        nodes.rpcs[0].send(tx)
        seen = next_of(socket, 2)["result"]
        assert base64.b64decode(seen["data"]["value"]["TxResult"]["tx"]) == tx
        assert seen["events"]["tx.hash"] == [hashlib.sha256(tx).hexdigest().upper()]
        assert seen["events"]["tm.event"] == ["Tx"]
        assert "result" in call(socket, 3, "unsubscribe", query="tm.event='NewBlock'")
        # Methods are called over a websocket, too.
        assert call(socket, 4, "health")["result"] == {}


def test_subscriptions_of_a_client_are_bounded_and_bad_ones_are_refused(nodes: Nodes) -> None:
    with nodes.rpcs[0].websocket() as socket:
        for number in range(MAX_PER_CLIENT):
            assert "result" in call(socket, number, "subscribe", query=f"tx.height = {10**9 + number}")
        refused = call(socket, 50, "subscribe", query="tm.event = 'Tx'")["error"]
        assert "max_subscriptions_per_client" in refused["data"]
        assert call(socket, 51, "unsubscribe", query="tm.event = 'No'")["error"]["data"] == "subscription not found"
        assert call(socket, 52, "subscribe", query="tm.event =")["error"]["code"] == -32603
        assert call(socket, 53, "subscribe", query=7)["error"]["code"] == -32602
        assert "result" in call(socket, 54, "unsubscribe_all")
        socket.send("no json")
        assert json.loads(socket.recv(timeout=DEADLINE_S))["error"]["code"] == -32700


def test_a_websocket_message_beyond_the_bound_closes_that_websocket_alone(nodes: Nodes) -> None:
    with nodes.rpcs[0].websocket() as socket, pytest.raises(ConnectionClosed):
        socket.send(" " * (MAX_BODY_BYTES + 1))
        socket.recv(timeout=DEADLINE_S)
    assert nodes.rpcs[0].get("health") == {}


def test_a_body_beyond_the_bound_is_refused_and_the_node_lives(nodes: Nodes) -> None:
    status, answer = nodes.rpcs[0].post(b" " * (MAX_BODY_BYTES + 1))
    assert status == 400
    assert json.loads(answer)["error"]["code"] == -32600
    assert nodes.rpcs[0].get("health") == {}


# --- the real CometBFT ---


@pytest.fixture(scope="module")
def comet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rpc]:
    """CometBFT's own example application on one node."""
    home, binary = tmp_path_factory.mktemp("kvstore"), cometbft_binary()
    rpc_port, p2p_port = free_ports(2)
    subprocess.run([binary, "init", "--home", home], check=True, capture_output=True)
    command = [binary, "start", "--home", home, "--proxy_app=kvstore", f"--rpc.laddr=tcp://127.0.0.1:{rpc_port}"]
    with (home / "log.txt").open("wb") as log:
        process = subprocess.Popen([*command, f"--p2p.laddr=tcp://127.0.0.1:{p2p_port}"], stdout=log, stderr=log)
    rpc = Rpc(rpc_port, home)
    try:
        until(lambda: rpc.height() >= 2, "the real CometBFT decides a block")
        yield rpc
    finally:
        process.kill()
        process.wait(10)


def shape(document: Any) -> Any:
    """Keys and types; of a list the first element. Null is what Go writes for anything empty."""
    if isinstance(document, dict):
        return {key: shape(value) for key, value in document.items()}
    if isinstance(document, list):
        return [shape(document[0])] if document else None
    return None if document is None else type(document).__name__


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    if ours is None or theirs is None:
        return []
    if isinstance(ours, dict) and isinstance(theirs, dict):
        odd = [f"{path}.{key}" for key in ours.keys() ^ theirs.keys()]
        return odd + [
            each for key in ours.keys() & theirs.keys() for each in differences(ours[key], theirs[key], f"{path}.{key}")
        ]
    if isinstance(ours, list) and isinstance(theirs, list):
        return differences(ours[0], theirs[0], f"{path}[]")
    return [] if ours == theirs else [f"{path}: {ours} is not {theirs}"]


ABSENT = (".version.app", ".app_version", ".app_state", ".result_finalize_block.events", ".TxResult.index")
"""Go leaves out zeros and empty lists: our application's version, a first index, events that the kvstore has not."""


def test_each_method_answers_in_the_shape_of_the_real_cometbft(nodes: Nodes, comet: Rpc) -> None:
    ours, theirs = nodes.rpcs[0], comet
    pairs: dict[str, tuple[Any, Any]] = {}
    pairs["broadcast_tx_commit"] = our_final, their_final = ours.send(nodes.transfer(5)), theirs.send(b"a=b")
    for method in ("health", "status", "genesis", "genesis_chunked", "blockchain", "block", "header", "commit",
                   "validators", "consensus_params", "consensus_state", "unconfirmed_txs", "num_unconfirmed_txs",
                   "abci_info", "net_info"):  # fmt: skip
        pairs[method] = ours.get(method), theirs.get(method)
    for method in ("block", "block_results", "commit"):
        pairs[f"{method} of a height"] = tuple(
            rpc.get(method, height=final["height"]) for rpc, final in ((ours, our_final), (theirs, their_final))
        )  # type: ignore[assignment]
    for method in ("tx", "block_by_hash"):
        pairs[method] = tuple(
            rpc.get(method, hash=_base64_of_hex(final["hash"]), **({"prove": True} if method == "tx" else {}))
            for rpc, final in ((ours, our_final), (theirs, their_final))
        )  # type: ignore[assignment]
    for method in ("tx_search", "block_search"):
        query = "tx.height > 0" if method == "tx_search" else "block.height > 0"
        pairs[method] = ours.get(method, query=query), theirs.get(method, query=query)
    more = [base64.b64encode(tx).decode() for tx in (nodes.transfer(6), b"c=d", nodes.transfer(7), b"e=f")]
    pairs["broadcast_tx_sync"] = ours.get("broadcast_tx_sync", tx=more[0]), theirs.get("broadcast_tx_sync", tx=more[1])
    pairs["broadcast_tx_async"] = (
        ours.get("broadcast_tx_async", tx=more[2]),
        theirs.get("broadcast_tx_async", tx=more[3]),
    )
    pairs["check_tx"] = ours.get("check_tx", tx=more[0]), theirs.get("check_tx", tx=base64.b64encode(b"g=h").decode())
    pairs["abci_query"] = (
        ours.get("abci_query", path="/store/params/key", data=b"params".hex()),
        theirs.get("abci_query", path="/store", data=b"a".hex()),
    )
    odd = [f"{name}{each}" for name, (a, b) in pairs.items() for each in differences(shape(a), shape(b))]
    assert [each for each in odd if not each.endswith(ABSENT)] == []


def _base64_of_hex(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("block", {"height": "999999999"}),
        ("block", {"height": "0"}),
        ("block", {"height": "x"}),
        ("blockchain", {"minHeight": "2", "maxHeight": "1"}),
        ("validators", {"height": "1", "page": "5"}),
        ("tx", {"hash": "AA=="}),
        ("tx_search", {"query": "foo"}),
        ("tx_search", {"query": "tx.height > 0", "order_by": "sideways"}),
        ("nothing", {}),
        ("subscribe", {"query": "tm.event = 'Tx'"}),
        ("header_by_hash", {"hash": "AA"}),
    ],
)
def test_each_error_has_the_real_cometbfts_code(nodes: Nodes, comet: Rpc, method: str, params: Any) -> None:
    ours, theirs = nodes.rpcs[0].ask(method, **params), comet.ask(method, **params)
    assert ours.get("error", {}).get("code") == theirs.get("error", {}).get("code")


def test_events_come_in_the_shape_of_the_real_cometbft(nodes: Nodes, comet: Rpc) -> None:
    seen: list[dict[str, Any]] = []
    for rpc, tx in ((nodes.rpcs[0], nodes.transfer(8)), (comet, b"x=y")):
        shown: dict[str, Any] = {}
        with rpc.websocket() as socket:
            for number, kind in enumerate(("NewBlock", "NewBlockHeader", "NewBlockEvents", "Tx")):
                call(socket, number, "subscribe", query=f"tm.event = '{kind}'")
            rpc.send(tx)
            while set(shown) != {0, 1, 2, 3}:
                message = json.loads(socket.recv(timeout=DEADLINE_S))
                if message["result"]:
                    shown[message["id"]] = message["result"]
        seen.append(shown)
    ours, theirs = seen
    for number, happened in ours.items():
        odd = differences(shape(happened["data"]), shape(theirs[number]["data"]))
        assert [each for each in odd if not each.endswith(ABSENT)] == []
        assert set(happened["events"]) & {"tm.event", "tx.hash"} == set(theirs[number]["events"]) & {
            "tm.event",
            "tx.hash",
        }


def double_vote(rpc: Rpc, chain_id: str, key: PrivateKey, height: int) -> DuplicateVoteEvidence:
    """Two prevotes of the key's validator at a decided height, for blocks that nobody has seen."""
    index, validator = rpc.validators(height).find(key.public.address) or (-1, None)
    assert validator is not None
    votes = []
    for number in (1, 2):
        block_id = BlockId(bytes([number]) * 32, 1, bytes([number]) * 32)
        vote = Vote(SignedType.PREVOTE, height, 0, block_id, 10**18, key.public.address, index)
        votes.append(replace(vote, signature=key.sign(vote_sign_bytes(chain_id, vote))))
    power = rpc.validators(height).total_power
    return DuplicateVoteEvidence(votes[0], votes[1], power, validator.power, rpc.block(height).header.time_ns)


def test_the_real_cometbft_takes_evidence_as_we_write_it(comet: Rpc) -> None:
    held = json.loads((comet.home / "config" / "priv_validator_key.json").read_text())
    key = PrivateKey.from_seed(base64.b64decode(held["priv_key"]["value"])[:32])
    chain_id = comet.get("status")["node_info"]["network"]
    evidence = double_vote(comet, chain_id, key, 1)
    told = comet.get("broadcast_evidence", evidence=evidence_document(evidence))
    assert base64.b64decode(told["hash"]) == hashlib.sha256(encode_evidence(evidence)).digest()
    broken = replace(evidence, vote_b=replace(evidence.vote_b, signature=bytes(64)))
    assert comet.ask("broadcast_evidence", evidence=evidence_document(broken))["error"]["code"] == -32603


# --- its light client ---


class LightProxy:
    """`cometbft light`: its RPC gives only what it has verified."""

    def __init__(self, folder: Path, primary: str, witness: str, height: int, trusted: str) -> None:
        (port,) = free_ports(1)
        self.rpc = Rpc(port)
        self._log = (folder / "log.txt").open("wb")
        self._process = subprocess.Popen(
            [
                cometbft_binary(), "light", CHAIN_ID, "-p", primary, "-w", witness, "--height", str(height),
                "--hash", trusted, "--home-dir", str(folder), "--laddr", f"tcp://127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=self._log,
        )  # fmt: skip

    def __enter__(self) -> Rpc:
        return self.rpc

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)
        self._log.close()


def test_the_real_light_client_follows_our_chain_from_a_trusted_header(nodes: Nodes, tmp_path: Path) -> None:
    primary, witness = nodes.rpcs[0], nodes.rpcs[1]
    trusted = primary.get("commit", height="2")["signed_header"]["commit"]["block_id"]["hash"]
    final = primary.send(nodes.transfer(9))
    with LightProxy(tmp_path, primary.url, witness.url, 2, trusted) as light:
        until(lambda: "result" in light.ask("commit"), "the light client verifies the newest header")
        for height in (3, int(final["height"])):
            verified = light.get("commit", height=str(height))["signed_header"]
            assert verified["header"] == primary.get("header", height=str(height))["header"]
        until(lambda: primary.height() > int(final["height"]) + 1, "two more blocks are decided")
        shown = light.get("block", height=final["height"])
        assert block_of(shown["block"]) == primary.block(int(final["height"]))
        results = light.get("block_results", height=final["height"])  # against last_results_hash of the next header
        assert [each["code"] for each in results["txs_results"]] == [0]
        assert light.get("tx", hash=_base64_of_hex(final["hash"]), prove=True)["height"] == final["height"]
        assert light.get("validators", height=final["height"])["total"] == "4"
        later = until(lambda: primary.height() > int(final["height"]) + 5 and primary.height(), "it goes on")
        until(lambda: light.ask("commit", height=str(later)).get("result"), "the light client follows")


def _alter_header(result: Any) -> None:
    header = result["signed_header"]["header"]
    header["app_hash"] = f"{int(header['app_hash'][:2], 16) ^ 1:02X}{header['app_hash'][2:]}"


def _alter_commit(result: Any) -> None:
    signed = next(each for each in result["signed_header"]["commit"]["signatures"] if each["signature"])
    raw = bytearray(base64.b64decode(signed["signature"]))
    raw[0] ^= 1
    signed["signature"] = base64.b64encode(raw).decode()


def _alter_validators(result: Any) -> None:
    raw = bytearray(base64.b64decode(result["validators"][0]["pub_key"]["value"]))
    raw[0] ^= 1
    result["validators"][0]["pub_key"]["value"] = base64.b64encode(raw).decode()


def _alter_power(result: Any) -> None:
    result["validators"][0]["voting_power"] = str(int(result["validators"][0]["voting_power"]) + 1)


@pytest.mark.parametrize(
    ("method", "alter", "words"),
    [
        ("commit", _alter_header, "invalid signed header: commit signs block"),
        ("commit", _alter_commit, "wrong signature (#0)"),
        ("validators", _alter_validators, "incorrectly derived from pubkey"),
        ("validators", _alter_power, "expected validator hash of header to match validator set hash"),
    ],
    ids=["header", "commit", "validator", "power"],
)
def test_the_real_light_client_refuses_when_one_byte_is_changed(
    nodes: Nodes, tmp_path: Path, method: str, alter: Callable[[Any], None], words: str
) -> None:
    trusted = nodes.rpcs[0].get("commit", height="2")["signed_header"]["commit"]["block_id"]["hash"]
    with (
        TamperingProxy(nodes.rpcs[0].port) as primary,
        TamperingProxy(nodes.rpcs[1].port) as witness,
        LightProxy(tmp_path, primary.url, witness.url, 2, trusted) as light,
    ):
        until(lambda: "result" in light.ask("commit", height="3"), "what is not changed is verified")
        for proxy in (primary, witness):
            proxy.alter(method, alter)
        assert words in light.ask("commit", height="4")["error"]["data"]
        assert primary.altered > 0


# --- how it begins and ends ---


def test_a_node_stops_at_once_though_websockets_are_open(tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path)
    rpc = Rpc(free_ports(1)[0])
    ledgers.write_settings("north", rpc_listen=f"127.0.0.1:{rpc.port}")
    ledgers.start("north")
    try:
        until(lambda: "result" in rpc.ask("health"), "the RPC answers")
        with rpc.websocket() as socket:
            call(socket, 1, "subscribe", query="tm.event = 'Tx'")
            process = ledgers.processes["north"]
            process.terminate()
            assert process.wait(10) == 0
        assert "Traceback" not in ledgers.log("north")
    finally:
        asyncio.run(ledgers.close())


def test_an_address_that_cannot_be_listened_on_is_told_at_the_start(tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path)
    with socketlib.create_server(("127.0.0.1", 0)) as taken:
        for listen, words, engine in (
            (f"127.0.0.1:{taken.getsockname()[1]}", "change `rpc_listen`", "embedded"),
            ("nowhere", "is not host:port", "embedded"),
            ("127.0.0.1:26657", "set comet.rpc_listen", "cometbft"),
        ):
            ledgers.write_settings("north", rpc_listen=listen, engine=engine)
            ledgers.start("north")
            try:
                assert ledgers.processes.pop("north").wait(20) != 0
                assert words in ledgers.log("north")
                assert "Traceback" not in ledgers.log("north")
            finally:
                asyncio.run(ledgers.close())


# --- evidence: the last, as it costs a validator its power ---


def test_a_double_vote_that_a_client_tells_one_node_stands_in_a_block_of_another(nodes: Nodes) -> None:
    told, other = nodes.rpcs[0], nodes.rpcs[1]
    evidence = double_vote(told, CHAIN_ID, key_of("south-consensus"), told.height() - 2)
    broken = replace(evidence, vote_b=replace(evidence.vote_b, signature=bytes(64)))
    assert told.ask("broadcast_evidence", evidence=evidence_document(broken))["error"]["code"] == -32603
    began = told.height()
    with other.websocket() as socket:
        call(socket, 1, "subscribe", query="tm.event = 'ValidatorSetUpdates'")
        answered = told.get("broadcast_evidence", evidence=evidence_document(evidence))
        assert base64.b64decode(answered["hash"]) == hashlib.sha256(encode_evidence(evidence)).digest()
        (change,) = next_of(socket, 1)["result"]["data"]["value"]["validator_updates"]
    removed = key_of("south-consensus").public.address
    assert (bytes.fromhex(change["address"]), change["voting_power"]) == (removed, "0")

    def found() -> Block | None:
        blocks = [other.block(height) for height in range(began, other.height() + 1)]
        return next((block for block in blocks if block.evidence), None)

    assert until(found, "a block holds the evidence").evidence == (evidence,)


def test_changes_of_validators_are_told_in_the_shape_of_the_real_cometbft_and_its_light_client_follows(
    nodes: Nodes, comet: Rpc, tmp_path: Path
) -> None:
    """The double voter of the test before has lost its power; the kvstore's validator is given more."""
    ours, witness = nodes.rpcs[:2]
    until(lambda: ours.get("validators")["total"] == "3", "the double voter is no validator any more")
    change, height = _change_of_validators(ours, range(ours.height(), 0, -1))
    removed = key_of("south-consensus").public
    assert change == [{"pub_key_bytes": base64.b64encode(removed.raw).decode(), "pub_key_type": "ed25519"}]
    assert ours.validators(height + 1).find(removed.address) is not None
    assert ours.validators(height + 2).find(removed.address) is None
    trusted = ours.get("commit", height="2")["signed_header"]["commit"]["block_id"]["hash"]
    with LightProxy(tmp_path, ours.url, witness.url, 2, trusted) as light:
        until(lambda: "result" in light.ask("commit", height=str(height + 2)), "the changed set is verified")
        assert light.get("validators", height=str(height + 2))["total"] == "3"

    key = json.loads((comet.home / "config" / "priv_validator_key.json").read_text())["pub_key"]["value"]
    with comet.websocket() as socket:
        call(socket, 1, "subscribe", query="tm.event = 'ValidatorSetUpdates'")
        comet.send(f"val=ed25519!{key}!11".encode())
        theirs = next_of(socket, 1)["result"]["data"]
    their_change, _ = _change_of_validators(comet, range(comet.height(), 0, -1))
    (their_update,) = theirs["value"]["validator_updates"]
    assert shape(their_update) == shape(validator_document(ours.validators(1).validators[0]))
    assert shape(update_document(ours.validators(1).validators[0])) == shape(their_change[0])


def _change_of_validators(rpc: Rpc, heights: Iterable[int]) -> tuple[Any, int]:
    """The first that is found, with its height."""
    for height in heights:
        change = rpc.get("block_results", height=str(height))["validator_updates"]
        if change:
            return change, height
    raise AssertionError("no block changed the validators")
