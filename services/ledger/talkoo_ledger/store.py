"""Blocks, results and state on disk: one SQLite file, one durable transaction for each block."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import ChainState
from talkoo_consensus.encoding import decode_block
from talkoo_consensus.validators import ValidatorSet

from talkoo_core.errors import Corrupt, Exhausted, Internal, NotFound
from talkoo_ledger import event_index
from talkoo_ledger.application import Change

TRANSCRIPTS_KEPT = 10_000
"""Heights back whose votes are kept, where they took several rounds: longer than stake takes to unbond."""
PRUNED_AT_ONCE = 4
"""Blocks that go with one that comes: a node whose bound was lowered gets there without a pause."""

VALIDATORS_EVERY = 32
"""Heights from one written validator set to the next at most: between them it is the rotation of the one before."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (height INTEGER PRIMARY KEY, block BLOB NOT NULL, commit_bytes BLOB NOT NULL,
    results BLOB NOT NULL, events BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (module TEXT, key TEXT, value BLOB NOT NULL, PRIMARY KEY (module, key))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS txs (hash BLOB PRIMARY KEY, height INTEGER NOT NULL, place INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS validators (height INTEGER PRIMARY KEY, validators BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS roots (height INTEGER PRIMARY KEY, roots BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS transcripts (height INTEGER PRIMARY KEY, votes BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
_FORGET = (
    "DELETE FROM entries",
    "DELETE FROM blocks",
    "DELETE FROM txs",
    "DELETE FROM validators",
    "DELETE FROM roots",
    "DELETE FROM transcripts",
    "DELETE FROM event_index",
)


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A decided block as it is written and read: CometBFT bytes, and what executing it gave."""

    height: int
    block: bytes
    commit: bytes
    results: tuple[service_pb2.TxResult, ...]
    events: service_pb2.BlockEvents
    module_roots: Mapping[str, bytes] = field(default_factory=dict)
    """Roots of the state's modules after the block. Written; read by `BlockStore.module_roots` alone."""
    evidence: bytes | None = None
    """The pool of evidence behind the block; None: as before. Written; read by `BlockStore.evidence` alone."""
    transcript: bytes | None = None
    """The votes of a height that took several rounds. Written; read by `BlockStore.transcript` alone."""


class _Results(msgspec.Struct, array_like=True, frozen=True):
    items: list[bytes]


class BlockStore:
    """Raises Exhausted when the disk is full, Corrupt when the file is damaged; the node stops on either.

    `index_events`: blocks are written so that `event_index.EventSearch` finds them and their transactions.
    """

    def __init__(self, path: Path, index_events: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _errors(path):
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA + event_index.SCHEMA)
        self._path = path
        self._last_validators: tuple[int, ValidatorSet] | None = None
        self._index_events = index_events
        self._has_index = index_events or self._one("SELECT 1 FROM event_index LIMIT 1") is not None

    @property
    def path(self) -> Path:
        return self._path

    def close(self) -> None:
        self._database.close()

    def save(self, stored: StoredBlock, changes: Iterable[Change], chain: ChainState, keep_from: int = 0) -> None:
        """One durable transaction: block, results, index, state, chain; blocks below `keep_from` go, a few at once."""
        with _errors(self._path):
            cursor = self._database.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                self._write(cursor, stored, changes, chain)
                self._prune(cursor, keep_from)
            except BaseException:
                if self._database.in_transaction:  # SQLite has rolled back by itself when the disk was full
                    cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def _write(self, cursor: sqlite3.Cursor, stored: StoredBlock, changes: Iterable[Change], chain: ChainState) -> None:
        results = msgspec.msgpack.encode(_Results([r.SerializeToString() for r in stored.results]))
        cursor.execute(
            "INSERT INTO blocks VALUES (?, ?, ?, ?, ?)",
            (stored.height, stored.block, stored.commit, results, stored.events.SerializeToString()),
        )
        # A hash may stand in two blocks: the second time it fails as a replay. The first is the one that counts.
        cursor.executemany(
            "INSERT OR IGNORE INTO txs VALUES (?, ?, ?)",
            [(result.hash, stored.height, place) for place, result in enumerate(stored.results)],
        )
        self._put_validators(cursor, stored.height, chain.last_validators)
        if self._index_events:
            rows = event_index.rows_of(stored.height, stored.events.hash, stored.events.events, stored.results)
            cursor.executemany("INSERT OR IGNORE INTO event_index VALUES (?, ?, ?, ?)", rows)
        cursor.execute(
            "INSERT OR REPLACE INTO roots VALUES (?, ?)",
            (stored.height, msgspec.msgpack.encode(dict(stored.module_roots))),
        )
        self._put_entries(cursor, changes)
        cursor.execute("INSERT OR REPLACE INTO meta VALUES ('chain', ?)", (msgspec.msgpack.encode(chain),))
        if stored.evidence is not None:
            cursor.execute("INSERT OR REPLACE INTO meta VALUES ('evidence', ?)", (stored.evidence,))
        if stored.transcript is not None:
            cursor.execute("INSERT OR REPLACE INTO transcripts VALUES (?, ?)", (stored.height, stored.transcript))
            cursor.execute("DELETE FROM transcripts WHERE height <= ?", (stored.height - TRANSCRIPTS_KEPT,))

    def _prune(self, cursor: sqlite3.Cursor, keep_from: int) -> None:
        """SQLite uses the freed pages again, so the file stops growing."""
        rows = cursor.execute(
            "SELECT height, block FROM blocks WHERE height < ? ORDER BY height LIMIT ?", (keep_from, PRUNED_AT_ONCE)
        ).fetchall()
        for height, block in rows:
            if self._has_index:
                old = self.block(height)
                entries = event_index.rows_of(height, old.events.hash, old.events.events, old.results)
                forget = "DELETE FROM event_index WHERE tag = ? AND value = ? AND height = ? AND place = ?"
                cursor.executemany(forget, entries)
            hashes = [hashlib.sha256(tx).digest() for tx in decode_block(block).data.txs]
            cursor.executemany("DELETE FROM txs WHERE hash = ? AND height = ?", [(each, height) for each in hashes])
            cursor.execute("DELETE FROM blocks WHERE height = ?", (height,))
            cursor.execute("DELETE FROM roots WHERE height = ?", (height,))
        if rows:
            cursor.execute(
                "DELETE FROM validators WHERE height < (SELECT MAX(height) FROM validators WHERE height <= ?)",
                (rows[-1][0] + 1,),
            )

    def _put_validators(self, cursor: sqlite3.Cursor, height: int, validators: ValidatorSet) -> None:
        """Not where they only rotated: priorities change with every height, powers seldom."""
        last, self._last_validators = self._last_validators, (height, validators)
        rotated = last is not None and last[0] == height - 1 and len(last[1]) > 0 and last[1].rotate() == validators
        if not rotated or height % VALIDATORS_EVERY == 0:
            encoded = msgspec.msgpack.encode(validators)
            cursor.execute("INSERT OR REPLACE INTO validators VALUES (?, ?)", (height, encoded))

    def _put_entries(self, cursor: sqlite3.Cursor, changes: Iterable[Change]) -> None:
        puts, removals = [], []
        for module, key, value in changes:
            if value is None:
                removals.append((module, key))
            else:
                puts.append((module, key, value))
        cursor.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", puts)
        cursor.executemany("DELETE FROM entries WHERE module = ? AND key = ?", removals)

    def begin_chain(self, entries: Iterable[Change], chain: ChainState) -> None:
        """Write the state of genesis."""
        with _errors(self._path):
            cursor = self._database.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            self._put_entries(cursor, entries)
            cursor.execute("INSERT INTO meta VALUES ('chain', ?)", (msgspec.msgpack.encode(chain),))
            cursor.execute("COMMIT")

    def replace_state(self, entries: Iterable[Change], chain: ChainState, commit: bytes = b"") -> None:
        """Put the state of a later height, from a snapshot, in the place of what is here; earlier blocks go.

        `commit`: of that height, without its block.
        """
        with _errors(self._path):
            cursor = self._database.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                for forget in _FORGET:
                    cursor.execute(forget)
                restored = msgspec.msgpack.encode((chain.last_height, commit))
                cursor.execute("INSERT OR REPLACE INTO meta VALUES ('restored', ?)", (restored,))
                self._put_entries(cursor, entries)
                cursor.execute("INSERT OR REPLACE INTO meta VALUES ('chain', ?)", (msgspec.msgpack.encode(chain),))
            except BaseException:
                if self._database.in_transaction:
                    cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def chain(self) -> ChainState | None:
        """The state of the chain after the last block, None before genesis was written."""
        row = self._one("SELECT value FROM meta WHERE name = 'chain'")
        if row is None:
            return None
        try:
            return msgspec.msgpack.decode(row[0], type=ChainState)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corrupt(f"{self._path} is damaged ({error}); restore it from a backup or sync anew") from None

    def entries(self) -> Iterator[tuple[str, str, bytes]]:
        with _errors(self._path):
            yield from self._database.execute("SELECT module, key, value FROM entries")

    def block(self, height: int) -> StoredBlock:
        """Raises NotFound for a height that is not decided here yet."""
        row = self._one("SELECT block, commit_bytes, results, events FROM blocks WHERE height = ?", height)
        if row is None:
            raise NotFound(f"block {height} is not on this node", code="no_block")
        results = msgspec.msgpack.decode(row[2], type=_Results).items
        return StoredBlock(
            height,
            row[0],
            row[1],
            tuple(service_pb2.TxResult.FromString(item) for item in results),
            service_pb2.BlockEvents.FromString(row[3]),
        )

    def decided(self, height: int) -> tuple[bytes, bytes] | None:
        """A block and its commit as they were written, None for a height that is not here."""
        row = self._one("SELECT block, commit_bytes FROM blocks WHERE height = ?", height)
        return None if row is None else (bytes(row[0]), bytes(row[1]))

    def base(self) -> int:
        """The lowest height whose block is here; 0 before the first."""
        row = self._one("SELECT MIN(height) FROM blocks")
        return 0 if row is None or row[0] is None else int(row[0])

    def events(self, height: int) -> service_pb2.BlockEvents | None:
        row = self._one("SELECT events FROM blocks WHERE height = ?", height)
        return None if row is None else service_pb2.BlockEvents.FromString(row[0])

    def module_roots(self, height: int) -> dict[str, bytes]:
        """Roots of the state's modules after a block; empty for a height that is not here."""
        row = self._one("SELECT roots FROM roots WHERE height = ?", height)
        return {} if row is None else msgspec.msgpack.decode(row[0], type=dict[str, bytes])

    def evidence(self) -> bytes | None:
        """What the last block that changed it left of the pool of evidence."""
        row = self._one("SELECT value FROM meta WHERE name = 'evidence'")
        return None if row is None else bytes(row[0])

    def transcript(self, height: int) -> bytes | None:
        """The votes of a height that took several rounds; None for others and for those long ago."""
        row = self._one("SELECT votes FROM transcripts WHERE height = ?", height)
        return None if row is None else bytes(row[0])

    def commit(self, height: int) -> bytes | None:
        """None for a height that is not here."""
        row = self._one("SELECT commit_bytes FROM blocks WHERE height = ?", height)
        if row is not None:
            return bytes(row[0])
        restored = self._one("SELECT value FROM meta WHERE name = 'restored'")
        at, commit = (0, b"") if restored is None else msgspec.msgpack.decode(restored[0], type=tuple[int, bytes])
        return commit if commit and at == height else None

    def validators(self, height: int) -> ValidatorSet | None:
        """Those that decided `height`, with the priorities they had; None where the height is not here."""
        row = self._one(
            "SELECT height, validators FROM validators WHERE height <= ? ORDER BY height DESC LIMIT 1", height
        )
        if row is None or self._one("SELECT 1 FROM blocks WHERE height = ?", height) is None:
            return None
        found = msgspec.msgpack.decode(row[1], type=ValidatorSet)
        for _ in range(height - row[0]):
            found = found.rotate()
        return found

    def tx_result(self, tx_hash: bytes) -> service_pb2.TxResult | None:
        """The result of a final transaction, None while it is not known."""
        row = self._one("SELECT height, place FROM txs WHERE hash = ?", tx_hash)
        return None if row is None else self.block(row[0]).results[row[1]]

    def _one(self, query: str, *arguments: object) -> tuple[Any, ...] | None:
        with _errors(self._path):
            row = self._database.execute(query, arguments).fetchone()
            assert row is None or isinstance(row, tuple)
            return row


class _errors:  # noqa: N801  # a context manager that reads as a word
    """SQLite's errors as ours: the node stops on them, and its last line says what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, sqlite3.Error):
            return
        if "full" in str(error):
            raise Exhausted(
                f"the disk with {self._path} is full; free some space and start the node again, nothing was lost",
                code="disk_full",
            ) from error
        if isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error):
            raise Corrupt(f"{self._path} is damaged ({error}); restore it from a backup or sync anew") from error
        raise Internal(f"{self._path}: {error}") from error
