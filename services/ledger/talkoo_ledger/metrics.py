"""What a ledger node tells Prometheus; docs/monitoring.md explains each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from talkoo_consensus.types import BlockIdFlag, Commit
from talkoo_consensus.validators import ValidatorSet

from talkoo_core.errors import TalkooError
from talkoo_ledger.mempool import MAX_BYTES, MAX_TXS, Mempool
from talkoo_ledger.store import StoredBlock
from talkoo_runtime.metrics import before_scrape, counter, exposed, gauge, histogram

if TYPE_CHECKING:
    from talkoo_ledger.engine import Engine

HEIGHT = gauge("talkoo_ledger_height", "Last block that this node has executed.")
LAST_BLOCK = gauge("talkoo_ledger_last_block_timestamp_seconds", "Time of that block, in seconds since 1970.")
ROUND = gauge("talkoo_ledger_round", "Round of the height that is being decided; above 0 a proposer was missed.")
CATCHING_UP = gauge("talkoo_ledger_catching_up", "1 while blocks are fetched from other members.")
PEERS = gauge("talkoo_ledger_peers_connected", "Other members' ledger nodes that this one exchanges messages with.")
VALIDATORS = gauge("talkoo_ledger_validators", "Members that vote.")
WAITING_TXS = gauge("talkoo_ledger_mempool_transactions", "Transactions that wait for a block.")
WAITING_BYTES = gauge("talkoo_ledger_mempool_bytes", "Their size.")
MOST_WAITING_TXS = gauge(
    "talkoo_ledger_mempool_limit_transactions", "So many may wait; 0 under CometBFT, which holds them itself."
)
MOST_WAITING_BYTES = gauge("talkoo_ledger_mempool_limit_bytes", "So large may they be; 0 under CometBFT.")
STATE_BYTES = gauge("talkoo_ledger_state_bytes", "Size of the node's database: blocks, results and state.")
BLOCK_SECONDS = histogram("talkoo_ledger_block_seconds", "Time between a block and the one before it.")
EXECUTION_SECONDS = histogram("talkoo_ledger_execution_seconds", "Time to apply one block and to make it durable.")
TRANSACTIONS = counter(
    "talkoo_ledger_transactions_total",
    "Transactions in executed blocks, by result: applied, failed.",
    ["result"],
    begin_with=["applied", "failed"],
)
REFUSED = counter(
    "talkoo_ledger_refused_transactions_total",
    "Transactions of own clients that were not taken, by family of the error.",
    ["family"],
    max_series=32,
)
EVENTS = counter(
    "talkoo_ledger_events_total",
    "Events in executed blocks, by type.",
    ["type"],
    begin_with=["slashed", "task_failed"],
    max_series=64,
)
MISSED = counter(
    "talkoo_ledger_missed_votes_total", "Blocks whose commit lacks the vote of this member.", ["organization"]
)


def watch_engine(engine: Engine, database: Path) -> None:
    """Read these at each scrape."""

    def read() -> None:
        chain = engine.executor.chain
        HEIGHT.set(chain.last_height)
        LAST_BLOCK.set(chain.last_time_ns / 1e9)
        ROUND.set(engine.round)
        CATCHING_UP.set(engine.catching_up)
        PEERS.set(len(engine.connected()))
        VALIDATORS.set(len(chain.validators))
        WAITING_TXS.set(engine.waiting())
        written = (database, database.with_name(f"{database.name}-wal"))
        STATE_BYTES.set(sum(path.stat().st_size for path in written if path.exists()))

    before_scrape(read)


def watch_mempool(mempool: Mempool) -> None:
    MOST_WAITING_TXS.set(MAX_TXS)
    MOST_WAITING_BYTES.set(MAX_BYTES)
    before_scrape(lambda: WAITING_BYTES.set(mempool.size_bytes))


def count_block(stored: StoredBlock, last_time_ns: int, execution_ns: int) -> None:
    """After a block was executed; `last_time_ns`: of the block before."""
    if not exposed():
        return
    if stored.height > 1:  # before block 1 nobody waited for a block
        BLOCK_SECONDS.observe((stored.events.time_ns - last_time_ns) / 1e9)
    EXECUTION_SECONDS.observe(execution_ns / 1e9)
    for result in stored.results:
        TRANSACTIONS.add(result="failed" if result.code else "applied")
    for event in stored.events.events:
        EVENTS.add(type=event.type)


def count_votes(commit: Commit, validators: ValidatorSet, name_of: Callable[[bytes], str]) -> None:
    """`commit`: of the block before, whose validators these were, in the same order."""
    if not exposed():
        return
    for validator, signature in zip(validators.validators, commit.signatures, strict=False):
        if signature.flag is BlockIdFlag.ABSENT:
            MISSED.add(organization=name_of(validator.address))


def count_refused(outcomes: Iterable[TalkooError | None]) -> None:
    for outcome in outcomes:
        if outcome is not None:
            REFUSED.add(family=outcome.family)
