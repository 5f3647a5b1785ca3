"""What the validator must not forget in a crash: the height it has read to, and every audit's verdict and salt."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import msgspec

from talkoo_runtime.disk import full_disk_is_exhausted

MAX_REMEMBERED = 1_000
"""Finished audits that are kept for `ListAudits`; the oldest go first."""

OPEN_STATES = ("queued", "recomputing", "committed")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS audits (
  task_id TEXT, attempt INTEGER, segment INTEGER, state TEXT, summary TEXT, verdict BLOB, salt BLOB,
  failed_attempts INTEGER, duration_ms INTEGER, time_ns INTEGER, PRIMARY KEY (task_id, attempt, segment)
);
CREATE TABLE IF NOT EXISTS progress (one INTEGER PRIMARY KEY CHECK (one = 1), height INTEGER);
"""


class AuditRecord(msgspec.Struct, frozen=True):
    """One audit as this validator sees it. `state`: queued, recomputing, committed, revealed, failed, dropped."""

    task_id: str
    attempt: int
    segment: int
    state: str = "queued"
    summary: str = ""
    verdict: bytes = b""
    salt: bytes = b""
    failed_attempts: int = 0
    duration_ms: int = 0
    time_ns: int = 0

    @property
    def key(self) -> tuple[str, int, int]:
        return self.task_id, self.attempt, self.segment


class Memory:
    """A SQLite file. Every write is on the disk when the call returns; calls may come from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def height(self) -> int:
        """Of the last block whose audits are all remembered; 0 at first."""
        with self._lock:
            row = self._db.execute("SELECT height FROM progress").fetchone()
        return int(row[0]) if row else 0

    def save_height(self, height: int) -> None:
        with self._lock, full_disk_is_exhausted(self._path), self._db:
            self._db.execute("INSERT OR REPLACE INTO progress VALUES (1, ?)", (height,))

    def save(self, record: AuditRecord) -> None:
        with self._lock, full_disk_is_exhausted(self._path), self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO audits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", msgspec.structs.astuple(record)
            )
            if record.state not in OPEN_STATES:
                self._db.execute(
                    "DELETE FROM audits WHERE state NOT IN (?, ?, ?) AND rowid NOT IN "
                    "(SELECT rowid FROM audits ORDER BY time_ns DESC LIMIT ?)",
                    (*OPEN_STATES, MAX_REMEMBERED),
                )

    def get(self, key: tuple[str, int, int]) -> AuditRecord | None:
        with self._lock:
            row = self._db.execute(
                "SELECT * FROM audits WHERE task_id = ? AND attempt = ? AND segment = ?", key
            ).fetchone()
        return AuditRecord(*row) if row else None

    def all(self, task_id: str = "") -> list[AuditRecord]:
        """Newest last."""
        query = "SELECT * FROM audits WHERE ? IN ('', task_id) ORDER BY time_ns, attempt, segment"
        with self._lock:
            return [AuditRecord(*row) for row in self._db.execute(query, (task_id,))]
