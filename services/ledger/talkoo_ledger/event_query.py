"""The query language of CometBFT's events: what a subscription or a search asks for.

    query      = condition {"AND" condition}
    condition  = tag ("=" operand | ("<" | "<=" | ">" | ">=") operand | "CONTAINS" 'text' | "EXISTS")
    operand    = 'text' | number | TIME rfc3339 | DATE yyyy-mm-dd        (text: "=" only)

A tag is `type.attribute` of an event, or tm.event, tx.hash, tx.height, block.height. A value is compared as a number
by the number it begins with. Each condition may be met by another event of the same transaction or block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from talkoo_core.errors import InvalidInput

MAX_QUERY_LENGTH = 512
MAX_CONDITIONS = 16
_TOKENS = re.compile(
    r"\s*(?:(?P<text>'[^']*')|(?P<time>TIME\s+[0-9T:Z.+-]+)|(?P<date>DATE\s+[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"|(?P<number>[0-9]+(?:\.[0-9]+)?)(?![\w.-])|(?P<op><=|>=|=|<|>)|(?P<word>[\w][\w.-]*))"
)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")

Operand = str | Decimal | datetime


@dataclass(frozen=True, slots=True)
class Condition:
    """`op`: =, <, <=, >, >=, CONTAINS or EXISTS (which has no operand)."""

    tag: str
    op: str
    operand: Operand | None = None

    def holds(self, value: str) -> bool:
        """Whether a value of the tag meets it."""
        if self.op == "EXISTS":
            return True
        if isinstance(self.operand, str):
            return self.operand in value if self.op == "CONTAINS" else value == self.operand
        given = _number(value) if isinstance(self.operand, Decimal) else _moment(value)
        return given is not None and _compared(given, self.op, self.operand)


@dataclass(frozen=True, slots=True)
class EventQuery:
    conditions: tuple[Condition, ...]

    def matches(self, values: Mapping[str, Sequence[str]]) -> bool:
        """Whether each condition is met by one of its tag's values."""
        return all(any(each.holds(value) for value in values.get(each.tag, ())) for each in self.conditions)


def parse_query(text: str) -> EventQuery:
    """Raises InvalidInput (`bad_query`) and says where."""
    if len(text) > MAX_QUERY_LENGTH:
        raise InvalidInput(f"maximum query length exceeded: {MAX_QUERY_LENGTH} characters", code="bad_query")
    tokens = _tokens(text)
    conditions: list[Condition] = []
    while True:
        conditions.append(_condition(tokens))
        if len(conditions) > MAX_CONDITIONS:
            raise InvalidInput(f"a query has at most {MAX_CONDITIONS} conditions", code="bad_query")
        kind, word, at = tokens.pop(0)
        if kind == "end":
            return EventQuery(tuple(conditions))
        if (kind, word) != ("word", "AND"):
            raise _wrong(at, f"got {word!r}, wanted AND or the end")


def _tokens(text: str) -> list[tuple[str, str, int]]:
    tokens: list[tuple[str, str, int]] = []
    at = 0
    while text[at:].strip():
        found = _TOKENS.match(text, at)
        if found is None:
            raise _wrong(at, f"{text[at:].strip()[:20]!r} is no part of a query; texts stand in single quotes")
        kind = found.lastgroup
        assert kind is not None
        tokens.append((kind, found.group(kind), at))
        at = found.end()
    return [*tokens, ("end", "the end", len(text))]


def _condition(tokens: list[tuple[str, str, int]]) -> Condition:
    kind, tag, at = tokens.pop(0)
    if kind != "word":
        raise _wrong(at, f"got {tag!r}, wanted a tag, as tx.height or transfer.to")
    kind, op, at = tokens.pop(0)
    if (kind, op) == ("word", "EXISTS"):
        return Condition(tag, op)
    if kind != "op" and (kind, op) != ("word", "CONTAINS"):
        raise _wrong(at, f"got {op!r}, wanted a comparison, CONTAINS or EXISTS")
    kind, operand, at = tokens.pop(0)
    if op == "CONTAINS" and kind != "text":
        raise _wrong(at, "CONTAINS takes a text in single quotes")
    if kind == "text":
        if op not in ("=", "CONTAINS"):
            raise _wrong(at, f"texts cannot be compared by {op}")
        return Condition(tag, op, operand[1:-1])
    if kind == "number":
        return Condition(tag, op, Decimal(operand))
    if kind in ("time", "date"):
        moment = _moment(operand[4:].strip())
        if moment is None:
            raise _wrong(at, f"{operand!r} is no moment; write TIME 2026-01-31T12:00:00Z or DATE 2026-01-31")
        return Condition(tag, op, moment)
    raise _wrong(at, f"got {operand!r}, wanted a text in single quotes, a number, TIME or DATE")


def _wrong(at: int, what: str) -> InvalidInput:
    return InvalidInput(f"the query cannot be read at offset {at}: {what}", code="bad_query")


def _number(value: str) -> Decimal | None:
    found = _NUMBER.match(value)
    return Decimal(found.group()) if found else None


def _moment(value: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _compared(given: Decimal | datetime, op: str, operand: Operand | None) -> bool:
    # Both are of one kind: `holds` reads the value as what the operand is.
    less, equal = given < operand, given == operand  # type: ignore[operator]
    return {"=": equal, "<": less, "<=": less or equal, ">": not (less or equal), ">=": not less}[op]
