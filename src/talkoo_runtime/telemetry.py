"""Traces by OpenTelemetry, written as JSON lines to a file; no collector is needed.

Where `opentelemetry-exporter-otlp` is installed and `OTEL_EXPORTER_OTLP_ENDPOINT` is set, spans also go there.
The SDK is loaded only by processes that write spans.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanContext, TraceFlags

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = logging.getLogger(__name__)
TRACEPARENT = "traceparent"
MAX_TRACE_FILE_BYTES = 32 * 1024 * 1024
EXPORT_DELAY_MS = 500
_TRACEPARENT_PARTS = 4


def setup_tracing(service: str, folder: str) -> None:
    """Write this process's spans to `<folder>/<service>.jsonl`; an empty folder: spans are made but not written."""
    if not folder:
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
    exporter = _json_lines_exporter(Path(folder) / f"{service}.jsonl")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_DELAY_MS))
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") and importlib.util.find_spec("opentelemetry.exporter.otlp"):
        module = importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
        provider.add_span_processor(BatchSpanProcessor(module.OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    atexit.register(provider.shutdown)


@contextmanager
def span(name: str, *, parent: str = "", **attributes: str | int | float | bool) -> Iterator[Span]:
    """A span around a block. `parent` is a traceparent that came by another way than the call (a task's, say)."""
    context = _context_of(parent) if parent else None
    with trace.get_tracer("talkoo").start_as_current_span(name, context=context, attributes=attributes) as current:
        yield current


def record(name: str, start_ns: int, end_ns: int, *, parent: str = "", **attributes: str | int | float | bool) -> None:
    """A span whose beginning and end are already known, in nanoseconds since the epoch."""
    context = _context_of(parent) if parent else None
    tracer = trace.get_tracer("talkoo")
    finished = tracer.start_span(name, context=context, start_time=start_ns, attributes=attributes)
    finished.end(end_ns)


def traceparent() -> str:
    """The current span as a W3C traceparent, empty when there is none."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return ""
    return f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"


@contextmanager
def continue_from(parent: str) -> Iterator[None]:
    """Spans inside belong to the trace of `parent`; a malformed or empty one changes nothing."""
    context = _context_of(parent)
    if context is None:
        yield
        return
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


def follow(parent: str) -> None:
    """As `continue_from`, to the end of the current task."""
    context = _context_of(parent)
    if context is not None:
        otel_context.attach(context)


def _context_of(parent: str) -> otel_context.Context | None:
    parts = parent.split("-")
    if len(parts) != _TRACEPARENT_PARTS:
        return None
    try:
        ids = int(parts[1], 16), int(parts[2], 16), int(parts[3], 16)
    except ValueError:
        return None
    remote = SpanContext(ids[0], ids[1], is_remote=True, trace_flags=TraceFlags(ids[2]))
    return trace.set_span_in_context(trace.NonRecordingSpan(remote)) if remote.is_valid else None


def _json_lines_exporter(path: Path) -> Any:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class JsonLines(SpanExporter):
        """Appends; a file over its bound is moved aside once, so at most two are kept.

        Spans that cannot be written (a full disk) are lost, which is told once.
        """

        told = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            try:
                self._append(spans)
            except OSError as error:
                if not self.told:
                    log.warning("%s cannot be written (%s); spans are lost until it can", path, error.strerror)
                self.told = True
                return SpanExportResult.FAILURE
            self.told = False
            return SpanExportResult.SUCCESS

        def _append(self, spans: Sequence[ReadableSpan]) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size > MAX_TRACE_FILE_BYTES:
                path.replace(path.with_suffix(".old.jsonl"))
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(_plain(item)) + "\n" for item in spans)

        def shutdown(self) -> None:
            return

    return JsonLines()


def _plain(item: ReadableSpan) -> dict[str, Any]:
    own = item.get_span_context()
    return {
        "name": item.name,
        "service": item.resource.attributes.get("service.name", ""),
        "trace_id": f"{own.trace_id:032x}" if own else "",
        "span_id": f"{own.span_id:016x}" if own else "",
        "parent_id": f"{item.parent.span_id:016x}" if item.parent else "",
        "start_ns": item.start_time,
        "end_ns": item.end_time,
        "status": item.status.status_code.name,
        "attributes": dict(item.attributes or {}),
    }
