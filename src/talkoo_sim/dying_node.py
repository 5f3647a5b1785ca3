"""A real ledger node on a disk that fails when told: `python -m talkoo_sim.dying_node PLAN --settings FILE`.

Runs `python -m talkoo_ledger` unchanged. Before it starts, the calls with which it makes things durable are wrapped and
counted: writes, fsyncs, renames, removals and truncations below its state folder, and SQLite's statements that write.
At the k-th of them (or from it on) the plan strikes:

    kill:before:17:      SIGKILL instead of the call
    kill:after:17:       SIGKILL as soon as it has returned
    kill:during:17:      a write is cut off in its middle; in anything else SIGKILL strikes from another thread
    fail:ENOSPC:17:      the 17th and all later calls fail; `fail:EIO:1:fdatasync` only the calls of that name
    short:each:17:       from the 17th on, every write writes one byte
    count::0:            nothing; the totals are written to `persistence-points.json` beside the state folder

What SQLite does inside of one statement cannot be counted from Python; `during` is for that.
"""

from __future__ import annotations

import errno
import json
import os
import runpy
import signal
import sqlite3
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITING = ("BEGIN", "COMMIT", "INSERT", "DELETE", "UPDATE", "REPLACE", "CREATE", "PRAGMA")
STEPS_OF_DURING_S = 0.000_25
"""`during` strikes so much later with each point, modulo sixteen."""
WRITES = ("write", "pwrite")
COUNTS_FILE = "persistence-points.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """`kind`: kill, fail, short or count. `how`: before, after or during; for `fail` the name of an errno."""

    kind: str
    how: str
    at: int
    only: str = ""
    """Count only calls of this name: `fdatasync`, `COMMIT`. Empty: all."""

    def encoded(self) -> str:
        return f"{self.kind}:{self.how}:{self.at}:{self.only}"

    @classmethod
    def decoded(cls, text: str) -> Plan:
        kind, how, at, only = text.split(":")
        return cls(kind, how, int(at), only)


@dataclass(slots=True)
class FaultyDisk:
    """Counts persistence points of this process and strikes at the planned one."""

    plan: Plan
    state_dir: Path
    points: int = 0
    names: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def point(self, name: str, call: Callable[[], Any], torn: Callable[[], Any], short: Callable[[], Any]) -> Any:
        """Do the call that makes something durable, or what the plan says instead."""
        with self._lock:
            self.names[name] += 1
            self.points += not self.plan.only or name == self.plan.only
            here = self.points == self.plan.at and (not self.plan.only or name == self.plan.only)
            later = self.points >= self.plan.at > 0 and (not self.plan.only or name == self.plan.only)
        if self.plan.kind == "count":
            self._tell_counts()
        elif self.plan.kind == "kill" and here:
            return self._kill(name, call, torn)
        elif self.plan.kind == "fail" and later:
            raise self._error(name)
        elif self.plan.kind == "short" and later and name in WRITES:
            return short()
        return call()

    def _kill(self, name: str, call: Callable[[], Any], torn: Callable[[], Any]) -> None:
        os.write(2, f"killed {self.plan.how} {name}, persistence point {self.plan.at}\n".encode())
        if self.plan.how == "during" and name not in WRITES:
            # Not waited for: the thread strikes while the call is under way, or soon behind it.
            delay_s = STEPS_OF_DURING_S * (self.plan.at % 16)
            threading.Thread(target=_kill_self, args=(delay_s,), daemon=True).start()
        try:
            if self.plan.how == "during":
                torn()
            elif self.plan.how == "after":
                call()
        finally:  # what the call raises reaches nobody
            _kill_self(STEPS_OF_DURING_S * 16 if self.plan.how == "during" and name not in WRITES else 0.0)

    def _error(self, name: str) -> Exception:
        number = getattr(errno, self.plan.how)
        if name.isupper():
            full = number in (errno.ENOSPC, errno.EDQUOT)
            return sqlite3.OperationalError("database or disk is full" if full else "disk I/O error")
        return OSError(number, os.strerror(number))

    def _tell_counts(self) -> None:
        text = json.dumps({"points": self.points, "names": dict(self.names)})
        (self.state_dir.parent / COUNTS_FILE).write_text(text)

    def holds(self, target: int | str | os.PathLike[str]) -> bool:
        """Whether a descriptor or path lies in the state folder."""
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.path.abspath(target)
        return Path(path).is_relative_to(self.state_dir)


def _kill_self(delay_s: float) -> None:
    time.sleep(delay_s)
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def wrap(disk: FaultyDisk) -> None:
    """Put the disk between this process and the real one."""
    for name in WRITES:
        _wrap_write(disk, name)
    for name in ("fsync", "fdatasync", "replace", "rename", "unlink", "truncate", "ftruncate"):
        _wrap_call(disk, name)
    real_connect = sqlite3.connect

    def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
        return real_connect(*arguments, factory=_connection_on(disk), **named)

    sqlite3.connect = connect  # type: ignore[assignment]


def _wrap_write(disk: FaultyDisk, name: str) -> None:
    real = getattr(os, name)

    def wrapped(descriptor: int, data: Any, *where: int) -> Any:
        if not disk.holds(descriptor):
            return real(descriptor, data, *where)
        return disk.point(
            name,
            lambda: real(descriptor, data, *where),
            lambda: real(descriptor, bytes(data)[: len(data) // 2], *where),
            lambda: real(descriptor, bytes(data)[:1], *where),
        )

    setattr(os, name, wrapped)


def _wrap_call(disk: FaultyDisk, name: str) -> None:
    real = getattr(os, name)

    def wrapped(target: Any, *more: Any, **named: Any) -> Any:
        if not disk.holds(target):
            return real(target, *more, **named)

        def call() -> Any:
            return real(target, *more, **named)

        return disk.point(name, call, call, call)

    setattr(os, name, wrapped)


def _connection_on(disk: FaultyDisk) -> type[sqlite3.Connection]:
    def counted(statement: str, call: Callable[[], Any]) -> Any:
        verb = statement.split(None, 1)[0].upper()
        return disk.point(verb, call, call, call) if verb in WRITING else call()

    class Cursor(sqlite3.Cursor):
        def execute(self, sql: str, *arguments: Any) -> Any:
            return counted(sql, lambda: super(Cursor, self).execute(sql, *arguments))

        def executemany(self, sql: str, *arguments: Any) -> Any:
            return counted(sql, lambda: super(Cursor, self).executemany(sql, *arguments))

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

        def execute(self, sql: str, *arguments: Any) -> Any:
            return self.cursor().execute(sql, *arguments)

    return Connection


def main() -> None:
    plan, sys.argv = Plan.decoded(sys.argv[1]), [sys.argv[0], *sys.argv[2:]]
    settings = tomllib.loads(Path(sys.argv[sys.argv.index("--settings") + 1]).read_text())
    wrap(FaultyDisk(plan, Path(settings["state_dir"]).resolve()))
    runpy.run_module("talkoo_ledger", run_name="__main__")


if __name__ == "__main__":
    main()
