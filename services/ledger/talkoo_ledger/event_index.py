"""Finding transactions and blocks by their events: rows that a store writes with each block, and how to search them.

A row says that an attribute (`type.attribute`) had a value in a block, at the place of a transaction, or (BLOCK_PLACE)
in the block itself. Only a node that serves the RPC writes them, from when it does; they go with the block they are of.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.errors import Exhausted, InvalidInput
from talkoo_ledger.event_query import Condition, EventQuery

SCHEMA = """
CREATE TABLE IF NOT EXISTS event_index (tag TEXT, value TEXT, height INTEGER, place INTEGER,
    PRIMARY KEY (tag, value, height, place)) WITHOUT ROWID;
"""
BLOCK_PLACE = -1
TX_HEIGHT, TX_HASH, BLOCK_HEIGHT, BLOCK_HASH = "tx.height", "tx.hash", "block.height", "block.hash"
MAX_VALUE_LENGTH = 256
"""Longer values are not indexed: they are texts, not names or numbers that anybody looks for."""
MAX_TAGS_PER_TX = 64
MAX_SCANNED = 100_000
"""Rows that one condition may look at."""
MAX_STEPS = 100_000_000
"""Of SQLite's machine for one search: about a second."""

_ALL = """
SELECT value, height, place FROM event_index WHERE tag = ? AND height BETWEEN ? AND ? AND place BETWEEN ? AND ?
"""
_EQUAL = f"{_ALL} AND value = ?"
_BEGINS = f"{_ALL} AND value >= ? AND value < ?"

Row = tuple[str, str, int, int]
Place = tuple[int, int]
"""(height, place of the transaction)"""
Span = tuple[int, int]
_ANY_TX: Span = (0, 2**62)
_BLOCK: Span = (BLOCK_PLACE, BLOCK_PLACE)


def event_pairs(event: service_pb2.Event) -> list[tuple[str, str]]:
    """An event's attributes; its subject, where it has one, is an attribute of that name (as `abci.convert`)."""
    subject = [("subject", event.subject)] if event.subject else []
    return subject + [(attribute.key, attribute.value) for attribute in event.attributes]


def block_events(
    events: Sequence[service_pb2.Event], results: Iterable[service_pb2.TxResult]
) -> list[service_pb2.Event]:
    """A block's own events: all of it, in order, without the run of them that its transactions caused."""
    caused = [event for result in results for event in result.events]
    for start in range(len(events) - len(caused) + 1):
        if list(events[start : start + len(caused)]) == caused:
            return [*events[:start], *events[start + len(caused) :]]
    return list(events)


def rows_of(
    height: int, hash_: bytes, events: Sequence[service_pb2.Event], results: Sequence[service_pb2.TxResult]
) -> set[Row]:
    """What the index holds of a block."""
    rows: set[Row] = {(BLOCK_HASH, hash_.hex().upper(), height, BLOCK_PLACE)}
    rows.update((tag, value, height, BLOCK_PLACE) for tag, value in _tagged(block_events(events, results)))
    for place, result in enumerate(results):
        # The empty value keeps tx.height in the order of heights.
        rows.add((TX_HEIGHT, "", height, place))
        rows.update((tag, value, height, place) for tag, value in _tagged(result.events))
    return rows


def _tagged(events: Iterable[service_pb2.Event]) -> Iterator[tuple[str, str]]:
    left = MAX_TAGS_PER_TX
    for event in events:
        for key, value in event_pairs(event):
            if len(value) <= MAX_VALUE_LENGTH and left:
                left -= 1
                yield f"{event.type}.{key}", value


class EventSearch:
    """Reads the index on a connection of its own, beside the node that writes; may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def height_of(self, block_hash: bytes) -> int | None:
        with _reading(self._path) as database:
            row = database.execute(
                "SELECT height FROM event_index WHERE tag = ? AND value = ?", (BLOCK_HASH, block_hash.hex().upper())
            ).fetchone()
        return None if row is None else int(row[0])

    def transactions(self, query: EventQuery) -> list[Place]:
        """Where those transactions stand that meet the query, in order. Raises Exhausted (`search_too_wide`)."""
        return self._search(query, TX_HEIGHT, _ANY_TX)

    def blocks(self, query: EventQuery) -> list[int]:
        """Heights of the blocks that meet the query, in order. Raises Exhausted (`search_too_wide`)."""
        return [height for height, _ in self._search(query, BLOCK_HEIGHT, _BLOCK)]

    def _search(self, query: EventQuery, height_tag: str, place: Span) -> list[Place]:
        span = _bounds(query, height_tag)
        others = [each for each in query.conditions if each.tag != height_tag]
        found: set[Place] | None = None
        with _reading(self._path) as database:
            for condition in others:
                places = _by_hash(database, condition) if condition.tag == TX_HASH else None
                if places is None:
                    places = _places(database, condition, place, span)
                found = places if found is None else found & places
            if found is None:
                tag = TX_HEIGHT if height_tag == TX_HEIGHT else BLOCK_HASH
                found = _places(database, Condition(tag, "EXISTS"), place, span)
        heights = [each for each in query.conditions if each.tag == height_tag]
        return sorted(each for each in found if all(asked.holds(str(each[0])) for asked in heights))


def _by_hash(database: sqlite3.Connection, condition: Condition) -> set[Place]:
    if condition.op != "=" or not isinstance(condition.operand, str):
        raise InvalidInput("tx.hash is compared by = with a text in hex", code="bad_query")
    try:
        wanted = bytes.fromhex(condition.operand)
    except ValueError:
        raise InvalidInput(f"tx.hash {condition.operand!r} is not hex", code="bad_query") from None
    rows = database.execute("SELECT height, place FROM txs WHERE hash = ?", (wanted,)).fetchall()
    return {(int(height), int(place)) for height, place in rows}


def _places(database: sqlite3.Connection, condition: Condition, place: Span, height: Span) -> set[Place]:
    statement, arguments = _ALL, [condition.tag, *height, *place]
    if condition.op == "=" and isinstance(condition.operand, str):
        statement, arguments = _EQUAL, [*arguments, condition.operand]
    elif condition.op == "=" and isinstance(condition.operand, Decimal):
        # A value counts by the number it begins with: "5utlk" is 5. What begins alike is then held against it.
        first = str(condition.operand).partition(".")[0]
        statement, arguments = _BEGINS, [*arguments, first, first + "\U0010ffff"]
    rows = database.execute(f"{statement} LIMIT {MAX_SCANNED + 1}", arguments).fetchall()
    if len(rows) > MAX_SCANNED:
        raise _too_wide(f"{condition.tag} {condition.op} looks at more than {MAX_SCANNED} rows")
    return {(int(height), int(place)) for value, height, place in rows if condition.holds(value)}


def _bounds(query: EventQuery, height_tag: str) -> tuple[int, int]:
    low, high = 0, 2**62
    for condition in query.conditions:
        if condition.tag == height_tag and isinstance(condition.operand, Decimal):
            at = int(min(condition.operand, Decimal(2**62)))
            low = max(low, at) if condition.op in ("=", ">", ">=") else low
            high = min(high, at) if condition.op in ("=", "<", "<=") else high
    return low, high


def _too_wide(what: str) -> Exhausted:
    return Exhausted(f"{what}; narrow the search by heights", code="search_too_wide")


class _reading:  # noqa: N801  # a context manager that reads as a word
    """A read-only connection with a bound on work."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
        self._database.set_progress_handler(lambda: 1, MAX_STEPS)

    def __enter__(self) -> sqlite3.Connection:
        self._database.execute("BEGIN")
        return self._database

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._database.close()
        if isinstance(error, sqlite3.OperationalError) and "interrupt" in str(error):
            raise _too_wide("the search takes too long") from None
