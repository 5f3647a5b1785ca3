"""Blocks on disk and transactions in waiting."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import ChainState, genesis_state
from talkoo_consensus.validators import Validator
from talkoo_ledger import mempool
from talkoo_ledger.application import CheckResult
from talkoo_ledger.mempool import Mempool
from talkoo_ledger.store import BlockStore, StoredBlock

from talkoo_core.errors import Conflict, Corrupt, Exhausted, NotFound, TalkooError

CHAIN: ChainState = genesis_state("town-1", 1, [Validator.of(b"k" * 32, 10)], b"root")


def block(height: int, *hashes: bytes) -> StoredBlock:
    results = tuple(service_pb2.TxResult(hash=h, height=height, index=i) for i, h in enumerate(hashes))
    return StoredBlock(height, b"block", b"commit", results, service_pb2.BlockEvents(height=height))


def opened(folder: Path) -> BlockStore:
    return BlockStore(folder / "ledger.db")


def test_blocks_state_and_chain_come_back(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.chain() is None
    store.begin_chain([("accounts", "a", b"1"), ("accounts", "b", b"2")], CHAIN)
    store.save(block(1, b"h1"), [("accounts", "a", b"3"), ("accounts", "b", None), ("nodes", "n", b"4")], CHAIN)
    store.close()
    again = opened(tmp_path)
    assert again.chain() == CHAIN
    assert sorted(again.entries()) == [("accounts", "a", b"3"), ("nodes", "n", b"4")]
    assert again.block(1) == block(1, b"h1")
    assert again.commit(1) == b"commit"
    assert again.commit(2) is None
    assert again.events(2) is None
    with pytest.raises(NotFound):
        again.block(2)
    again.close()


def test_the_first_result_of_a_hash_counts(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin_chain([], CHAIN)
    store.save(block(1, b"x", b"h"), [], CHAIN)
    store.save(block(2, b"h"), [], CHAIN)
    found = store.tx_result(b"h")
    assert found is not None
    assert (found.height, found.index) == (1, 1)
    assert store.tx_result(b"unknown") is None
    store.close()


def test_a_block_that_cannot_be_stored_leaves_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin_chain([], CHAIN)
    store.save(block(1), [("accounts", "a", b"1")], CHAIN)
    with pytest.raises(Exception, match="UNIQUE"):
        store.save(block(1), [("accounts", "a", b"2")], CHAIN)
    assert list(store.entries()) == [("accounts", "a", b"1")]
    store.close()


def test_a_full_disk_is_exhausted_and_the_last_block_stands(tmp_path: Path) -> None:
    """SQLite is told that it may not grow, which it reports exactly as a full disk."""
    store = opened(tmp_path)
    store.begin_chain([], CHAIN)
    store.save(block(1), [], CHAIN)
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    big = StoredBlock(2, b"x" * 1_000_000, b"commit", (), service_pb2.BlockEvents(height=2))
    with pytest.raises(Exhausted, match="full"):
        store.save(big, [], CHAIN)
    store._database.execute("PRAGMA max_page_count = 1000000")
    assert store.block(1).height == 1
    store.save(big, [], CHAIN)
    store.close()


def test_a_damaged_file_is_corrupt(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin_chain([], CHAIN)
    store.close()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("UPDATE meta SET value = x'00' WHERE name = 'chain'")
    database.close()
    damaged = opened(tmp_path)
    with pytest.raises(Corrupt, match="damaged"):
        damaged.chain()
    damaged.close()


class Checker:
    """Stands in for the application: a transaction is `sender:nonce`, nonces follow each other."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}

    def check_tx(self, data: bytes, admit: Callable[[str], None] | None = None) -> CheckResult:
        tx_hash = hashlib.sha256(data).digest()
        sender, _, nonce = data.decode().partition(":")
        if int(nonce) != self.next.get(sender, 0):
            return CheckResult(1, tx_hash, "conflict", "nonce_gap", "the nonce does not follow")
        try:
            if admit is not None:
                admit(sender)
        except TalkooError as error:
            return CheckResult(1, tx_hash, error.family, error.code, error.message)
        self.next[sender] = int(nonce) + 1
        return CheckResult(0, tx_hash, sender=sender, nonce=int(nonce))

    def retract(self, data: bytes) -> None:
        sender, _, nonce = data.decode().partition(":")
        assert self.next[sender] == int(nonce) + 1
        self.next[sender] = int(nonce)


def add(pool: Mempool, text: str) -> bool:
    data = text.encode()
    return pool.add(data, hashlib.sha256(data).digest())


def test_transactions_wait_in_order_once_each() -> None:
    pool = Mempool(Checker())
    assert add(pool, "a:0")
    assert add(pool, "b:0")
    assert add(pool, "a:1")
    assert not add(pool, "a:1")
    assert pool.transactions() == [b"a:0", b"b:0", b"a:1"]
    with pytest.raises(Conflict, match="does not follow"):
        add(pool, "a:7")


def test_after_a_block_what_is_final_or_no_longer_valid_is_gone() -> None:
    checker = Checker()
    pool = Mempool(checker)
    for text in ("a:0", "a:1", "b:0", "b:1"):
        add(pool, text)
    checker.next = {"a": 1, "b": 5}  # the block held a:0, and b went on elsewhere
    pool.after_block([hashlib.sha256(b"a:0").digest()])
    assert pool.transactions() == [b"a:1"]


def test_a_sender_has_a_bound_and_may_go_on_when_some_became_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool, "MAX_PER_SENDER", 3)
    pool = Mempool(Checker())
    for nonce in range(3):
        add(pool, f"a:{nonce}")
    with pytest.raises(Exhausted, match="wait already") as caught:
        add(pool, "a:3")
    assert caught.value.code == "sender_full"
    with pytest.raises(Conflict):
        add(pool, "a:4")  # the refused one did not count
    pool.after_block([hashlib.sha256(b"a:0").digest()])


def test_in_a_full_pool_the_sender_with_most_makes_room_for_those_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool, "MAX_TXS", 5)
    pool = Mempool(Checker())
    for nonce in range(5):
        add(pool, f"a:{nonce}")
    with pytest.raises(Exhausted) as caught:
        add(pool, "a:5")
    assert caught.value.code == "mempool_full"
    add(pool, "b:0")
    add(pool, "c:0")
    assert pool.transactions() == [b"a:0", b"a:1", b"a:2", b"b:0", b"c:0"]
    add(pool, "b:1")
    assert pool.transactions() == [b"a:0", b"a:1", b"b:0", b"c:0", b"b:1"]
    with pytest.raises(Exhausted):
        add(pool, "b:2")  # nobody has more than its sender would have
    add(pool, "d:0")
    assert len(pool) == 5


def test_a_full_pool_counts_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool, "MAX_BYTES", 12)
    pool = Mempool(Checker())
    for nonce in range(4):
        add(pool, f"a:{nonce}")
    with pytest.raises(Exhausted):
        add(pool, "a:4")
    add(pool, "b:0")
    assert pool.transactions() == [b"a:0", b"a:1", b"a:2", b"b:0"]
