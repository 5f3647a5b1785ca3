"""Tables, JSON and YAML of what the ledger holds. Rows are built without any terminal; `rich` only draws them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from talkoo_api.ledger.v1 import service_pb2, state_pb2

from talkoo_core.amounts import PPM, format_tlk
from talkoo_runtime.plain import enum_word, plain

T = TypeVar("T")
FORMATS = ("table", "json", "yaml")
ID_LENGTH = 14
PIPE_WIDTH = 200
"""Columns of a table that goes into a pipe: nothing is cut."""


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    title: str
    text: Callable[[T], str]
    right: bool = False


def phase_word(task: state_pb2.Task) -> str:
    return enum_word(state_pb2.TaskPhase.DESCRIPTOR, task.phase)


def segments_of(task: state_pb2.Task) -> int:
    return -(-task.spec.steps // max(task.spec.steps_per_segment, 1))


def _outcome(task: state_pb2.Task) -> str:
    return task.model_version or task.failure or task.placement_reason


def _size(size_bytes: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.1f} {unit}"
    return f"{size_bytes} B"


def _speed(flops: int) -> str:
    return f"{flops / 1e9:,.1f}" if flops else "-"


def _node_state(node: state_pb2.Node) -> str:
    return f"jailed until block {node.jailed_until_height}" if node.jailed else "in good standing"


def _heldout(model: state_pb2.ModelVersion) -> str:
    return f"{model.heldout_correct}/{model.heldout_total}" if model.heldout_total else "-"


TASKS: list[Column[state_pb2.Task]] = [
    Column("id", lambda t: t.id),
    Column("name", lambda t: t.spec.name),
    Column("phase", phase_word),
    Column("segments", lambda t: f"{t.accepted_segments}/{segments_of(t)}", right=True),
    Column("attempt", lambda t: str(t.attempt), right=True),
    Column("spent", lambda t: format_tlk(t.spent_utlk), right=True),
    Column("outcome", _outcome),
]
NODES: list[Column[state_pb2.Node]] = [
    Column("name", lambda n: n.name),
    Column("organization", lambda n: n.organization),
    Column("id", lambda n: n.id[:ID_LENGTH]),
    Column("device", lambda n: n.device),
    Column("GFLOP/s", lambda n: _speed(n.speed_flops), right=True),
    Column("memory", lambda n: _size(n.memory_bytes), right=True),
    Column("price/GFLOP", lambda n: format_tlk(n.price_utlk_per_gflop), right=True),
    Column("stake", lambda n: format_tlk(n.stake_utlk), right=True),
    Column("verified", lambda n: str(n.verified_segments), right=True),
    Column("earned", lambda n: format_tlk(n.earned_utlk), right=True),
    Column("slashed", lambda n: format_tlk(n.slashed_utlk) if n.slashed_utlk else "-", right=True),
    Column("standing", _node_state),
]
MODELS: list[Column[state_pb2.ModelVersion]] = [
    Column("version", lambda m: m.version),
    Column("task", lambda m: m.task_id),
    Column("held out", _heldout, right=True),
    Column("licence", lambda m: m.licence or "-"),
    Column("owner's price", lambda m: format_tlk(m.request_price_utlk), right=True),
    Column("requests", lambda m: str(m.requests), right=True),
    Column("parent", lambda m: m.parent_version or "-"),
    Column("weights", lambda m: m.params_sha256[:12]),
]
ORGANIZATIONS: list[Column[state_pb2.Organization]] = [
    Column("name", lambda o: o.name),
    Column("owner", lambda o: o.owner),
    Column("stake", lambda o: format_tlk(o.stake_utlk), right=True),
    Column("power", lambda o: str(o.power), right=True),
    Column("credit", lambda o: f"{o.credit_gflop} GFLOP", right=True),
    Column("state", lambda o: f"left in block {o.left_height}" if o.left_height else "member"),
]
ACCOUNTS: list[Column[state_pb2.Account]] = [
    Column("label", lambda a: a.label or "-"),
    Column("address", lambda a: a.address),
    Column("balance", lambda a: format_tlk(a.balance_utlk), right=True),
    Column("transactions", lambda a: str(a.nonce), right=True),
]
BLOCKS: list[Column[service_pb2.BlockEvents]] = [
    Column("height", lambda b: str(b.height), right=True),
    Column("time", lambda b: time_text(b.time_ns)),
    Column("proposer", lambda b: b.proposer),
    Column("round", lambda b: str(b.round), right=True),
    Column("txs", lambda b: str(b.txs), right=True),
    Column("size", lambda b: _size(b.size_bytes), right=True),
    Column("hash", lambda b: b.hash.hex()[:16]),
    Column("events", lambda b: ", ".join(dict.fromkeys(e.type for e in b.events)) or "-"),
]


def payment_columns(names: Mapping[str, str]) -> list[Column[state_pb2.Payment]]:
    """`names` are labels of accounts and names of nodes, by address."""

    def party(text: str) -> str:
        pool, colon, address = text.partition(":")
        return f"{pool}:{names.get(address, address)}" if colon else names.get(text, text)

    return [
        Column("#", lambda p: str(p.number), right=True),
        Column("block", lambda p: str(p.height), right=True),
        Column("kind", lambda p: p.kind),
        Column("from", lambda p: _short(party(p.source), 32)),
        Column("to", lambda p: _short(party(p.destination), 32)),
        Column("amount", lambda p: format_tlk(p.amount_utlk), right=True),
        Column("proof", lambda p: _short(p.proof, 40)),
        Column("note", lambda p: p.note),
    ]


def _short(text: str, length: int = 24) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def time_text(time_ns: int) -> str:
    """UTC, to the millisecond."""
    from datetime import UTC, datetime

    moment = datetime.fromtimestamp(time_ns / 1e9, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def show_many(items: Sequence[Message], columns: Sequence[Column[Any]], form: str, nothing: str) -> None:
    """Print a list. A table of none is one line that says what would fill it."""
    if form != "table":
        print_data([plain(item) for item in items], form)
    elif not items:
        from click import echo

        echo(nothing)
    else:
        print_table([column.title for column in columns], [[c.text(i) for c in columns] for i in items], columns)


def show_one(item: Message, form: str, extra: dict[str, Any] | None = None) -> None:
    """Print everything of one thing: YAML for people, or what was asked for."""
    print_data({**plain(item), **(extra or {})}, "yaml" if form == "table" else form)


def print_data(value: Any, form: str) -> None:
    from click import echo

    if form == "json":
        echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    import yaml

    echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120).rstrip())


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[Column[Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title, column in zip(titles, columns, strict=True):
        table.add_column(title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


_STYLES = {"completed": "green", "running": "cyan", "verifying": "cyan", "failed": "red", "cancelled": "yellow"}


def share_text(rate_ppm: int) -> str:
    return f"{rate_ppm * 100 / PPM:g} %"


def block_line(block: service_pb2.BlockEvents) -> str:
    """One decided block as a line, for `talkoo blocks -f`."""
    events = ", ".join(dict.fromkeys(event.type for event in block.events))
    return f"{block.height:>8}  {time_text(block.time_ns)}  {block.proposer}  {block.txs} txs  {events}".rstrip()
