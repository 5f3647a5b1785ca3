"""Spans as JSON lines: one trace over processes, a bounded file, and no harm from a full disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from talkoo_runtime import telemetry
from talkoo_runtime.telemetry import continue_from, traceparent

PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
WRITES = """
import sys
from talkoo_runtime.telemetry import continue_from, record, setup_tracing, span
setup_tracing("north-ledger", sys.argv[1])
with continue_from(sys.argv[2]), span("outer", height=7), span("inner"):
    record("known", 1_000, 2_000, parent=sys.argv[2], part="start")
"""


def test_a_process_writes_its_spans_into_the_trace_it_was_given(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITES, str(tmp_path), PARENT], check=True, timeout=60)
    spans = {s["name"]: s for s in map(json.loads, (tmp_path / "north-ledger.jsonl").read_text().splitlines())}
    assert {s["trace_id"] for s in spans.values()} == {"ab" * 16}
    assert spans["outer"]["parent_id"] == spans["known"]["parent_id"] == "cd" * 8
    assert spans["inner"]["parent_id"] == spans["outer"]["span_id"]
    assert spans["outer"]["attributes"] == {"height": 7}
    assert (spans["known"]["start_ns"], spans["known"]["end_ns"]) == (1_000, 2_000)
    assert spans["outer"]["service"] == "north-ledger"


def test_the_sdk_is_not_loaded_where_no_spans_are_written() -> None:
    code = (
        "import sys; from talkoo_runtime.telemetry import setup_tracing; setup_tracing('x', '');"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("parent", ["", "garbage", "00-zz-zz-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_malformed_traceparent_changes_nothing(parent: str) -> None:
    with continue_from(parent):
        assert traceparent() == ""


def test_a_traceparent_comes_back_as_it_was() -> None:
    with continue_from(PARENT):
        assert traceparent() == PARENT
    assert traceparent() == ""


def spans_to(path: Path) -> Any:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(telemetry._json_lines_exporter(path)))
    return provider.get_tracer("test")


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MAX_TRACE_FILE_BYTES", 2000)
    tracer = spans_to(tmp_path / "north.jsonl")
    for _ in range(50):
        tracer.start_span("x").end()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["north.jsonl", "north.old.jsonl"]
    assert all(p.stat().st_size < 3000 for p in tmp_path.iterdir())


def test_a_full_disk_loses_spans_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    tracer = spans_to(Path("/dev/full"))
    for _ in range(3):
        tracer.start_span("x").end()
    assert [r.message for r in caplog.records] == [
        "/dev/full cannot be written (No space left on device); spans are lost until it can"
    ]
