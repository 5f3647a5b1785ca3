"""The trace of a task begins where it is submitted: its first span and the memo that carries it to the ledger."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opentelemetry import trace

from talkoo.profile import PROFILE_FILE
from talkoo_runtime.telemetry import setup_tracing, span, traceparent

TRACES_FOLDER = "traces"
SERVICE = "talkoo-cli"


@contextmanager
def task_trace(home: Path, task_name: str) -> Iterator[str]:
    """A span `task.submit` around a block; gives the W3C traceparent for the transaction's memo.

    Spans are written to `<home>/traces`, where the services of `talkoo up` write theirs, unless the program has its own
    tracing. Without a home the trace still gets its id, so that the services' spans belong together.
    """
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider) and (home / PROFILE_FILE).is_file():
        setup_tracing(SERVICE, str(home / TRACES_FOLDER))
    with span("task.submit", task_name=task_name):
        yield traceparent() or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
