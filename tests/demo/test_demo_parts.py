"""The demo's sentences, tables and report, without a federation."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from talkoo_api.ledger.v1 import service_pb2, state_pb2

from talkoo.demo.accounting import Books, Table, held_utlk, issued_utlk, node_table, payment_table, token_table
from talkoo.demo.example import drawing, example_folder, heldout_samples
from talkoo.demo.report import Report, StoryLine, draw_curve, render_html, write_report
from talkoo.demo.story import Story

PROTO = Path(__file__).parents[2] / "proto/talkoo_api/ledger/v1/service.proto"
LEDGER_PAGE = Path(__file__).parents[2] / "docs/ledger.md"
LEDGER_SOURCE = Path(__file__).parents[2] / "services/ledger/talkoo_ledger"
SILENT = {
    "transfer",
    "segment_committed",
    "segment_opened",
    "payment",
    "request_completed",
    "request_refunded",
    "node_registered",
    "membership_applied",
    "membership_approved",
    "member_admitted",
    "member_left",
    "key_rotated",
    "power_changed",
    "accused",
    "accusation_answered",
    "validator_punished",
    "epoch",
    "task_cancelled",
}
"""Events that the demo's story leaves out: they are in its tables, or do not happen in it."""
ATTRIBUTES = {
    "name": "digits",
    "owner": "tlk1alice",
    "escrow_utlk": "1500000",
    "attempt": "2",
    "nodes": "tlk1n,tlk1m",
    "first_segment": "1",
    "segment": "1",
    "rate_ppm": "300000",
    "reason": "drawn by lot",
    "outcome": "forged",
    "forgers": "tlk1n",
    "amount_utlk": "10000000",
    "model_version": "digits@1",
    "correct": "98",
    "total": "100",
    "kind": "loss_nan",
    "message": "the loss is nan",
    "price_utlk": "60000",
    "sender": "tlk1alice",
    "version": "digits@1",
    "node": "tlk1n",
}


def event(kind: str, **changes: str) -> service_pb2.Event:
    attributes = {**ATTRIBUTES, **changes}
    return service_pb2.Event(
        type=kind,
        subject="tlk1n",
        attributes=[service_pb2.Attribute(key=key, value=value) for key, value in attributes.items()],
    )


def documented_events() -> set[str]:
    """The list of event types in the wire contract's own comment."""
    comment = re.search(r"// Types: ((?:.|\n)*?)\nmessage Event", PROTO.read_text())
    assert comment is not None
    text = re.sub(r"\([^)]*\)", "", comment[1].replace("//", " "))
    return set(re.findall(r"[a-z]+(?:_[a-z]+)*", text))


def test_the_ledger_page_lists_the_same_events() -> None:
    """Each row of its table of events begins with the type."""
    section = LEDGER_PAGE.read_text().split("## Events", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `([a-z_]+)`", section, re.MULTILINE)) == documented_events()


def test_the_ledger_emits_exactly_the_documented_events() -> None:
    source = "".join(path.read_text() for path in LEDGER_SOURCE.glob("*.py"))
    emitted = set(re.findall(r"\bemit\(\s*\"([a-z_]+)\"", source))
    assert emitted == documented_events()


def story() -> Story:
    return Story({"tlk1alice": "alice", "tlk1n": "north-1", "tlk1m": "east-1"})


def test_each_event_is_told_or_left_out_on_purpose() -> None:
    told = {kind for kind in documented_events() if story().tell(event(kind)) is not None}
    assert told | SILENT == documented_events() | SILENT
    assert not told & SILENT


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("task_created", "alice funds task “digits” with 1.5 TLK in escrow"),
        ("task_placed", "placed again, from segment 1 on north-1, east-1"),
        ("audit_opened", "segment 1 is opened: the validators re-compute it (drawn by lot, chance 30 %)"),
        ("verdict", "segment 1: FORGED by north-1: re-computation gives other bits"),
        ("slashed", "north-1 loses 10.0 TLK of its stake"),
        ("model_registered", "model tlk1n registered, 98.0 % right on 100 held-out samples"),
        ("task_failed", "task failed (loss_nan): the loss is nan"),
    ],
)
def test_sentences_read_well(kind: str, line: str) -> None:
    assert story().tell(event(kind)) == line


def books() -> Books:
    return Books(
        accounts=[state_pb2.Account(address="tlk1alice", balance_utlk=70, label="alice")],
        organizations=[state_pb2.Organization(name="north", owner="o", validator="v", stake_utlk=20)],
        nodes=[state_pb2.Node(id="tlk1n", name="north-1", stake_utlk=10, slashed_utlk=3, power_source="declared")],
        payments=[
            state_pb2.Payment(
                number=1,
                kind="compute",
                source="escrow:t",
                destination="tlk1n",
                amount_utlk=7,
                task_id="t",
                segment=2,
                proof="commitment:ab",
            ),
            state_pb2.Payment(number=2, kind="compute", destination="tlk1n", amount_utlk=5, task_id="other"),
        ],
        supply=state_pb2.Supply(genesis_utlk=100, emitted_utlk=9, burned_utlk=1, escrow_utlk=6, unbonding_utlk=2),
    )


def test_the_sum_of_what_is_held_is_what_was_issued() -> None:
    made = books()
    assert held_utlk(made) == issued_utlk(made.supply) == 108
    assert "equal to the last unit" in token_table(made).note
    made.accounts[0].balance_utlk += 1
    assert "NOT EQUAL" in token_table(made).note


def test_tables_say_who_earned_what_by_which_proof() -> None:
    made = books()
    (row,) = node_table(made).rows
    assert row[0] == "north-1"
    assert "0.000012" in row
    assert row[-1].startswith("slashed")
    (payment,) = payment_table(made, {"tlk1n": "north-1"}, "t").rows
    assert payment[2:] == ("compute", "escrow:t", "north-1", "0.000007 TLK", "2", "commitment:ab")


class Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    curve = draw_curve([(0, 2.0), (1, 1.0)], [(0, 1)], "title")
    assert curve.startswith(b"\x89PNG")
    report = Report(
        title="<b>title",
        lead="lead & more",
        facts=[("model", "digits@1")],
        story=[StoryLine(1.0, "alice & bob", "bad")],
        tables=[Table("t", ("a", "b"), (("x", "1"), ("y", "2")))],
        checks=Table("c", ("check",), (("ok",),)),
        curve_png=curve,
    )
    page, picture = write_report(report, tmp_path / "run")
    assert picture.read_bytes() == curve
    collector = Collector()
    collector.feed(page.read_text())
    assert collector.open == []
    assert all(source.startswith("data:") for source in collector.sources)
    assert "&lt;b&gt;title" in render_html(report)
    assert '<td class="number">1</td>' in render_html(report)


def test_the_example_brings_pictures_of_digits() -> None:
    samples = heldout_samples(example_folder(), 3)
    assert len({sample.digit for sample in samples}) == 3
    assert all(len(sample.pixels) == 64 and 0 <= min(sample.pixels) <= max(sample.pixels) <= 16 for sample in samples)
    assert len(drawing(samples[0]).splitlines()) == 8
