"""Blocks and state on disk, and opening them again."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_consensus.chain import make_block
from talkoo_consensus.encoding import block_id_of, decode_block
from talkoo_consensus.types import BlockIdFlag, Commit, CommitSig
from talkoo_consensus.validators import ValidatorSet
from talkoo_ledger.executor import Executor

from talkoo_core.errors import Corrupt, Exhausted, InvalidInput, NotFound
from talkoo_runtime.clock import SystemClock
from talkoo_runtime.transactions import sign_transaction, transaction_hash
from talkoo_sim.ledger_chain import CHAIN_ID, address, key_of, make_genesis

FEE_UTLK = 1_000


def opened(folder: Path) -> Executor:
    return Executor(make_genesis(), folder, SystemClock())


def transfer(nonce: int, amount_utlk: int = 5) -> bytes:
    message = tx_pb2.Transfer(to=address("bob"), amount_utlk=amount_utlk)
    return sign_transaction(key_of("alice"), CHAIN_ID, nonce, FEE_UTLK, message)


def decide(executor: Executor, *txs: bytes) -> list[bytes]:
    """Execute the next block as if it had been decided; the commit's signatures are made up."""
    chain = executor.chain
    proposer = chain.validators.proposer.address
    block = make_block(chain, txs, executor.last_commit(), chain.last_time_ns + 1_000, proposer)
    block_id = block_id_of(block)
    places = tuple(CommitSig(BlockIdFlag.COMMIT, v.address, 1, bytes(64)) for v in chain.validators.validators)
    return executor.execute(0, block_id, block, Commit(chain.height, 0, block_id, places))


def test_a_block_is_found_again_with_its_results_and_events_after_a_restart(tmp_path: Path) -> None:
    executor = opened(tmp_path)
    first, again = transfer(0), transfer(0)
    assert decide(executor, first) == [transaction_hash(first)]
    decide(executor, again, transfer(1))
    chain = executor.chain
    executor.store.close()
    restored = opened(tmp_path)
    assert restored.chain == chain
    assert restored.application.info().app_hash == chain.app_hash
    stored = restored.store.block(1)
    assert decode_block(stored.block).data.txs == (first,)
    result = restored.store.tx_result(transaction_hash(first))
    assert result is not None
    # The second time the same transaction failed as a replay; its first result is the one that counts.
    assert (result.height, result.code, result.sender) == (1, 0, address("alice"))
    assert [r.code == 0 for r in restored.store.block(2).results] == [False, True]
    assert restored.store.events(1) == stored.events
    assert restored.store.tx_result(b"x" * 32) is None
    with pytest.raises(NotFound):
        restored.store.block(3)
    assert decide(restored, transfer(2))
    restored.store.close()


def test_a_state_that_is_not_what_the_chain_says_is_refused(tmp_path: Path) -> None:
    executor = opened(tmp_path)
    decide(executor, transfer(0))
    executor.store.close()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("DELETE FROM entries WHERE module = 'accounts' AND key = ?", (address("bob"),))
    database.close()
    with pytest.raises(Corrupt):
        opened(tmp_path)


def test_the_validators_of_every_height_are_found_though_few_sets_are_written(tmp_path: Path) -> None:
    genesis = make_genesis(unbonding_blocks=10, audit_deadline_blocks=1, max_audit_extensions=0)
    executor = Executor(genesis, tmp_path, SystemClock(), retain_blocks=60)
    decided: dict[int, ValidatorSet] = {}
    for number in range(100):
        if number == 70:  # a restart begins with a set of its own
            executor.store.close()
            executor = Executor(genesis, tmp_path, SystemClock(), retain_blocks=60)
        if number in (40, 41, 90):
            member = executor.chain.next_validators.validators[0]
            changed = executor.chain.next_validators.update([replace(member, power=member.power + number)])
            executor.chain = replace(executor.chain, next_validators=changed)
        decided[executor.chain.height] = executor.chain.validators
        decide(executor)
    base = executor.store.base()
    assert base == 41
    assert len({each.total_power for each in decided.values()}) == 4
    for height, validators in decided.items():
        assert executor.store.validators(height) == (validators if height >= base else None)
    assert executor.store.validators(101) is None
    executor.store.close()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        (written,) = database.execute("SELECT COUNT(*) FROM validators").fetchone()
    database.close()
    assert written < 10


def test_another_chains_state_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).store.close()
    other = msgspec.structs.replace(make_genesis(), chain_id="other-1")
    with pytest.raises(Corrupt, match="the stored chain is 'sim-1', the genesis file says 'other-1'"):
        Executor(other, tmp_path, SystemClock())


def test_a_node_may_keep_the_newest_blocks_alone_and_its_file_stops_growing(tmp_path: Path) -> None:
    genesis = make_genesis(unbonding_blocks=10, audit_deadline_blocks=1, max_audit_extensions=0)
    executor = Executor(genesis, tmp_path, SystemClock(), retain_blocks=20)
    sizes = []
    for nonce in range(120):
        decide(executor, transfer(nonce))
        (pages,) = executor.store._database.execute("PRAGMA page_count").fetchone()
        sizes.append(pages)
    assert executor.store.base() == 101
    assert executor.store.tx_result(transaction_hash(transfer(99))) is None
    kept = executor.store.tx_result(transaction_hash(transfer(100)))
    assert kept is not None
    assert kept.height == 101
    assert sizes[-1] <= sizes[60] * 1.1
    executor.store.close()
    wider = Executor(genesis, tmp_path, SystemClock())  # keeps all that is still there
    decide(wider, transfer(120))
    assert wider.store.base() == 101
    wider.store.close()


def test_a_node_that_would_keep_less_than_it_looks_back_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="looks back 601 blocks") as caught:
        Executor(make_genesis(), tmp_path, SystemClock(), retain_blocks=600)
    assert caught.value.code == "bad_setting"


def test_a_full_disk_leaves_the_block_before_and_says_so(tmp_path: Path) -> None:
    executor = opened(tmp_path)
    decide(executor, transfer(0))
    database = executor.store._database
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Exhausted, match="nothing was lost"):
        for nonce in range(1, 200):
            decide(executor, transfer(nonce))
    executor.store.close()
    restored = opened(tmp_path)
    assert restored.chain.last_height >= 1
    assert decide(restored, transfer(restored.chain.last_height))
    restored.store.close()
