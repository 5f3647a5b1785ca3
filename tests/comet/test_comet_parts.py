"""The parts between the ledger and CometBFT, one by one: its home, its documents, what waits in its mempool."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
import tomllib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_consensus.chain import genesis_state, make_block
from talkoo_consensus.encoding import block_id_of
from talkoo_consensus.types import (
    ABSENT_SIG,
    EMPTY_COMMIT,
    BlockId,
    BlockIdFlag,
    Commit,
    CommitSig,
    DuplicateVoteEvidence,
    SignedType,
    Vote,
)
from talkoo_consensus.validators import Validator
from talkoo_ledger.abci.beginning import beginning_of
from talkoo_ledger.abci.hosted import HostedLedger
from talkoo_ledger.application import FinalizeRequest
from talkoo_ledger.comet.documents import block_of, commit_of, time_of
from talkoo_ledger.comet.home import check_comet, ensure_node_key, find_binary, home_of, rfc3339, write_home
from talkoo_ledger.comet.rpc import CometRpc
from talkoo_ledger.comet.waiting import MISSED_BLOCKS, Waiting
from talkoo_ledger.rpc.documents import block_document, commit_document
from talkoo_ledger.settings import CometSettings, LedgerSettings
from websockets.asyncio.server import ServerConnection, serve

from talkoo_core.errors import Corrupt, InvalidInput, NotFound, TalkooError
from talkoo_runtime.clock import SystemClock
from talkoo_runtime.transactions import sign_transaction, transaction_hash
from talkoo_sim.ledger_chain import address, key_of, make_genesis

KEY = key_of("north-consensus")


def settings(folder: Path, comet: CometSettings | None = None, **changes: Any) -> LedgerSettings:
    names = ("federation", "name", "listen", "certificate", "private_key", "trust_bundle", "genesis", "consensus_key")
    values: dict[str, Any] = dict.fromkeys(names, "x")
    values |= {"organization": "north", "state_dir": str(folder), "engine": "cometbft"}
    return LedgerSettings(**values | {"comet": comet or CometSettings()} | changes)


def a_chain() -> Any:
    genesis = make_genesis()
    validators = [Validator.of(bytes.fromhex(o.consensus_key), o.stake_utlk) for o in genesis.organizations]
    return genesis_state(genesis.chain_id, genesis.genesis_time_ns, validators, b"r" * 32)


def written(folder: Path, **changes: Any) -> Path:
    chain = a_chain()
    beginning = beginning_of(make_genesis(), chain, signed=(7, 1, 2))
    return write_home(settings(folder, **changes), make_genesis(), beginning, KEY, folder / "socket")


# --- home ---


def test_the_home_holds_what_cometbft_reads_and_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    home = written(tmp_path, block_interval_ms=170)
    genesis = json.loads((home / "config" / "genesis.json").read_bytes())
    assert genesis["chain_id"] == make_genesis().chain_id
    assert time_of(genesis["genesis_time"]) == make_genesis().genesis_time_ns
    assert genesis["app_hash"] == (b"r" * 32).hex().upper()
    assert {each["power"] for each in genesis["validators"]} == {
        str(o.stake_utlk) for o in make_genesis().organizations
    }
    configuration = tomllib.loads((home / "config" / "config.toml").read_text())
    assert configuration["consensus"]["timeout_commit"] == "170ms"
    assert configuration["proxy_app"] == f"unix://{tmp_path / 'socket'}"
    key = json.loads((home / "config" / "priv_validator_key.json").read_bytes())
    assert base64.b64decode(key["priv_key"]["value"])[:32] == KEY.seed
    for name in ("priv_validator_key.json", "node_key.json"):
        assert stat.S_IMODE((home / "config" / name).stat().st_mode) == 0o600


def test_what_was_signed_is_written_once_and_never_again(tmp_path: Path) -> None:
    state = written(tmp_path) / "data" / "priv_validator_state.json"
    assert json.loads(state.read_bytes()) == {"height": "7", "round": 1, "step": 2}
    state.write_text('{"height": "99", "round": 0, "step": 3}')
    written(tmp_path)
    assert '"99"' in state.read_text()


def test_a_lost_sign_state_beside_other_data_is_not_made_up(tmp_path: Path) -> None:
    data = written(tmp_path) / "data"
    (data / "blockstore.db").mkdir()
    (data / "priv_validator_state.json").unlink()
    with pytest.raises(Corrupt, match="could sign twice"):
        written(tmp_path)


def test_the_configuration_follows_the_settings_and_the_genesis_stays(tmp_path: Path) -> None:
    home = written(tmp_path)
    before = (home / "config" / "genesis.json").read_bytes()
    written(tmp_path, comet=CometSettings(log_level="info", index=False, peers=("a" * 40 + "@host:1",)))
    configuration = tomllib.loads((home / "config" / "config.toml").read_text())
    assert (configuration["log_level"], configuration["p2p"]["persistent_peers"]) == ("info", "a" * 40 + "@host:1")
    assert configuration["tx_index"]["indexer"] == "null"
    assert (home / "config" / "genesis.json").read_bytes() == before


def test_a_node_keeps_its_id(tmp_path: Path) -> None:
    home = home_of(settings(tmp_path))
    first = ensure_node_key(home)
    assert ensure_node_key(home) == first
    assert len(first) == 40
    (home / "config" / "node_key.json").write_text("{}")
    with pytest.raises(Corrupt, match="not a node key"):
        ensure_node_key(home)


@pytest.mark.parametrize(
    ("comet", "changes", "why"),
    [
        (CometSettings(sync_rpc=("http://a:1",)), {"trust_height": 5, "trust_hash": "a" * 64}, "two RPC addresses"),
        (CometSettings(sync_rpc=("http://a:1", "http://b:1")), {}, "trust_height"),
        (CometSettings(peers=("host:26656",)), {}, "no `<node id>@host:port`"),
    ],
)
def test_settings_that_cometbft_would_refuse_are_explained(
    tmp_path: Path, comet: CometSettings, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidInput, match=why):
        check_comet(settings(tmp_path, comet, **changes))


def test_a_missing_program_is_told_with_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="go install"):
        find_binary(settings(tmp_path, CometSettings(binary="no-such-cometbft")))


# --- documents ---


def vote(block_id: BlockId) -> Vote:
    return Vote(SignedType.PRECOMMIT, 3, 1, block_id, 1_700_000_000_123_456_789, b"a" * 20, 2, b"s" * 64)


def test_blocks_and_commits_are_read_as_cometbft_writes_them() -> None:
    """The writer is that of our own RPC, which the real `cometbft light` reads."""
    chain = a_chain()
    evidence = DuplicateVoteEvidence(
        vote(BlockId(b"h" * 32, 1, b"p" * 32)), vote(BlockId(b"i" * 32, 1, b"p" * 32)), 40, 10, chain.last_time_ns + 5
    )
    commit = Commit(
        3,
        1,
        BlockId(b"h" * 32, 1, b"p" * 32),
        (CommitSig(BlockIdFlag.COMMIT, b"a" * 20, 12_000_000_001, b"s"), ABSENT_SIG),
    )
    for block in (
        make_block(chain, [b"one", b"two"], EMPTY_COMMIT, chain.last_time_ns + 123, b"p" * 20),
        make_block(chain, [], commit, chain.last_time_ns + 10**9, b"p" * 20, [evidence]),
    ):
        document = json.loads(json.dumps(block_document(block)))
        assert block_of(document) == block
        assert block_id_of(block_of(document)) == block_id_of(block)
    assert commit_of(json.loads(json.dumps(commit_document(commit)))) == commit


@pytest.mark.parametrize("time_ns", [0, 1, 10**9, 1_700_000_000_123_456_789, 1_700_000_000_100_000_000])
def test_times_go_there_and_back(time_ns: int) -> None:
    assert time_of(rfc3339(time_ns)) == time_ns


def test_what_is_no_block_is_told() -> None:
    good = block_document(make_block(a_chain(), [], EMPTY_COMMIT, 10**18 * 2, b"p" * 20))
    for wrong in ({}, {**good, "header": {}}, {**good, "data": {"txs": ["?"]}}, {**good, "data": None}):
        with pytest.raises(Corrupt):
            block_of(wrong)


# --- what waits ---


class FakeComet:
    """Stands for CometBFT's RPC: takes `broadcast_tx_async` over a websocket and answers as it is told to."""

    def __init__(self) -> None:
        self.given: list[bytes] = []
        self.refusal = ""
        self.on_given: Callable[[bytes], None] = lambda _: None

    async def serve(self, connection: ServerConnection) -> None:
        async for text in connection:
            request = json.loads(text)
            data = base64.b64decode(request["params"]["tx"])
            self.given.append(data)
            answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
            if self.refusal:
                answer["error"] = {"code": -32603, "message": "Internal error", "data": self.refusal}
            else:
                answer["result"] = {"hash": ""}
                self.on_given(data)
            await connection.send(json.dumps(answer))


class Bench:
    """A hosted ledger, what waits for it, and the stand-in for CometBFT."""

    def __init__(self, folder: Path) -> None:
        self.comet = FakeComet()
        self.ledger = HostedLedger(make_genesis(), folder, SystemClock())
        self.comet.on_given = self.check

    async def open(self) -> None:
        self.server = await serve(self.comet.serve, "127.0.0.1", 0)
        port = next(iter(self.server.sockets)).getsockname()[1]
        self.rpc = CometRpc(f"127.0.0.1:{port}", lambda: self.waiting.connected())
        self.waiting = Waiting(self.ledger, self.rpc)
        self.running = asyncio.create_task(self.rpc.run())
        await self.until(lambda: self.rpc.connected)

    def check(self, data: bytes, *, again: bool = False) -> None:
        self.waiting.checked(data, self.ledger.application.check_tx(data), again=again)

    def block(self, *txs: bytes) -> None:
        height = self.ledger.chain.height
        self.ledger.finalize(FinalizeRequest(height, bytes(32), height * 10**9, bytes(20), txs))
        self.waiting.committed(self.ledger.commit())

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        self.server.close()
        await self.server.wait_closed()
        self.ledger.store.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.open()
    yield bench
    await bench.close()


def transfer(nonce: int) -> bytes:
    return sign_transaction(
        key_of("alice"), make_genesis().chain_id, nonce, 100, tx_pb2.Transfer(to=address("bob"), amount_utlk=5)
    )


async def test_the_outcome_is_that_of_our_own_check_in_order(bench: Bench) -> None:
    txs = [transfer(0), transfer(5), transfer(1), b"garbage"]
    outcomes = await bench.waiting.submit(txs)
    assert [None if each is None else each.code for each in outcomes] == [None, "nonce_gap", None, "malformed"]
    assert bench.comet.given == txs
    assert len(bench.waiting) == 2
    assert transaction_hash(txs[0]) in bench.waiting
    assert transaction_hash(txs[1]) not in bench.waiting


async def test_a_transaction_that_waits_is_taken_again_without_being_given_again(bench: Bench) -> None:
    await bench.waiting.submit([transfer(0)])
    assert await bench.waiting.submit([transfer(0)]) == [None]
    assert len(bench.comet.given) == 1


async def test_a_final_transaction_is_refused_as_our_own_engine_does(bench: Bench) -> None:
    await bench.waiting.submit([transfer(0)])
    bench.block(transfer(0))
    (outcome,) = await bench.waiting.submit([transfer(0)])
    assert outcome is not None
    assert outcome.code == "nonce_too_low"
    assert len(bench.waiting) == 0


@pytest.mark.parametrize(
    ("words", "family", "code"),
    [
        ("mempool is full: number of txs 5000 (max: 5000)", "exhausted", "mempool_full"),
        ("Tx too large. Max size is 1048576, but got 2000000", "exhausted", "tx_too_large"),
        ("endpoint is closed while node is catching up", "unavailable", "catching_up"),
        ("something new", "invalid_input", "engine_refused"),
    ],
)
async def test_cometbfts_own_refusals_become_ours(bench: Bench, words: str, family: str, code: str) -> None:
    bench.comet.refusal = words
    (outcome,) = await bench.waiting.submit([transfer(0)])
    assert isinstance(outcome, TalkooError)
    assert (outcome.family, outcome.code) == (family, code)


async def test_a_transaction_that_another_node_gave_first_is_taken(bench: Bench) -> None:
    """CometBFT has it in its cache; the check that its gossip causes is the answer."""
    bench.comet.refusal = "tx already exists in cache"
    asked = asyncio.create_task(bench.waiting.submit([transfer(0)]))
    await bench.until(lambda: len(bench.comet.given) == 1)
    assert not asked.done()
    bench.check(transfer(0))
    assert await asked == [None]


async def test_what_was_promised_is_given_again_after_cometbft_came_back(bench: Bench) -> None:
    await bench.waiting.submit([transfer(0), transfer(1)])
    bench.check(sign_transaction(key_of("bob"), "sim-1", 0, 100, tx_pb2.Transfer(to=address("alice"), amount_utlk=1)))
    assert len(bench.waiting) == 3
    bench.comet.given.clear()
    for connection in list(bench.server.connections):
        await connection.close()
    await bench.until(lambda: len(bench.comet.given) == 2)
    assert bench.comet.given == [transfer(0), transfer(1)]


async def test_what_cometbft_no_longer_checks_is_given_again(bench: Bench) -> None:
    """A full mempool drops without a word; transactions that it still has are not given twice."""
    await bench.waiting.submit([transfer(0), transfer(1)])
    bench.comet.given.clear()
    for _ in range(MISSED_BLOCKS + 1):
        bench.block()
        bench.check(transfer(0), again=True)
    await bench.until(lambda: len(bench.comet.given) == 1)
    assert bench.comet.given == [transfer(1)]


async def test_a_waiting_transaction_that_became_wrong_is_forgotten(bench: Bench) -> None:
    await bench.waiting.submit([transfer(0)])
    bench.block(sign_transaction(key_of("alice"), "sim-1", 0, 100, tx_pb2.Transfer(to=address("bob"), amount_utlk=9)))
    bench.check(transfer(0), again=True)
    assert len(bench.waiting) == 0


async def test_nobody_waits_for_ever_for_a_check(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talkoo_ledger.comet.waiting.CHECK_TIMEOUT_S", 0.05)
    bench.comet.on_given = lambda _: None
    outcomes = await asyncio.gather(bench.waiting.submit([transfer(0)]), bench.waiting.submit([transfer(0)]))
    assert {outcome.code for (outcome,) in outcomes if outcome is not None} == {"engine_unavailable"}
    assert len(bench.waiting) == 0
