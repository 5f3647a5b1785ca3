"""Metrics for Prometheus: declared once at a module's top level, exposed only by a process that has `metrics_listen`.

Everywhere else a metric is a name and a comparison: the client library is not even loaded. What is cheaper to read than
to keep is read when Prometheus asks (`before_scrape`). Labels have few values by design; a metric that meets more than
its bound books the rest under `other`, so that nobody's input can grow a process or a monitoring system.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from talkoo_core.errors import Exhausted, InvalidInput

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)
MAX_SERIES = 256
"""Combinations of label values that one metric keeps apart."""
MAX_SCRAPES = 4
"""Scrapes answered at once; further connections are closed."""
SCRAPE_TIMEOUT_S = 10.0
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets of a duration, unless the metric has its own."""
_NAME = re.compile(r"talkoo(_[a-z0-9]+)+")
_LABEL = re.compile(r"[a-z][a-z0-9_]*")


class Metric:
    """A name, what it means, and the names of its labels. Labels are given by keyword, all of them."""

    def __init__(self, name: str, about: str, labels: Sequence[str], max_series: int) -> None:
        assert _NAME.fullmatch(name), f"{name}: metrics begin with talkoo_ and end in their unit"
        assert all(map(_LABEL.fullmatch, labels))
        self.name, self.about, self.labels = name, about, tuple(labels)
        self._max_series = max_series
        self._real: Any = None
        self._series: dict[tuple[str, ...], Any] = {}
        _declare(self)

    def expose(self, registry: CollectorRegistry) -> None:
        """From now on values are kept."""
        self._real = self._make(registry)

    def clear(self) -> None:
        """Forget all series, before a scrape that sets those that still exist."""
        if self._real is not None and self.labels:
            self._real.clear()
            self._series.clear()

    def _make(self, registry: CollectorRegistry) -> Any:
        raise NotImplementedError

    def _child(self, labels: dict[str, str]) -> Any:
        if not self.labels:
            assert not labels
            return self._real
        values = tuple(labels[name] for name in self.labels)
        assert len(labels) == len(values), f"{self.name} has the labels {', '.join(self.labels)}"
        found = self._series.get(values)
        if found is None:
            if len(self._series) >= self._max_series:
                return self._real.labels(*(OTHER for _ in values))
            found = self._series[values] = self._real.labels(*values)
        return found


class Gauge(Metric):
    """A value that rises and falls."""

    def set(self, value: float, **labels: str) -> None:
        if self._real is not None:
            self._child(labels).set(value)

    def _make(self, registry: CollectorRegistry) -> Any:
        from prometheus_client import Gauge as Real

        return Real(self.name, self.about, self.labels, registry=registry)


class Counter(Metric):
    """A sum that only grows, until the process begins anew.

    `begin_with`: values of the only label that are told as 0 before they are met, so that the first one is a rise.
    """

    def __init__(
        self, name: str, about: str, labels: Sequence[str], max_series: int, begin_with: Sequence[str] = ()
    ) -> None:
        self._begin_with = tuple(begin_with)
        super().__init__(name, about, labels, max_series)

    def expose(self, registry: CollectorRegistry) -> None:
        super().expose(registry)
        for value in self._begin_with:
            self.add(0, **{self.labels[0]: value})

    def add(self, amount: float = 1, **labels: str) -> None:
        if self._real is not None:
            self._child(labels).inc(amount)

    def _make(self, registry: CollectorRegistry) -> Any:
        from prometheus_client import Counter as Real

        return Real(self.name, self.about, self.labels, registry=registry)


class Histogram(Metric):
    """How often a value fell into which bucket, and the sum of all."""

    def __init__(
        self, name: str, about: str, labels: Sequence[str], max_series: int, buckets: Sequence[float] = SECONDS
    ) -> None:
        self._buckets = tuple(buckets)
        super().__init__(name, about, labels, max_series)

    def observe(self, value: float, **labels: str) -> None:
        if self._real is not None:
            self._child(labels).observe(value)

    def _make(self, registry: CollectorRegistry) -> Any:
        from prometheus_client import Histogram as Real

        return Real(self.name, self.about, self.labels, registry=registry, buckets=self._buckets)


def gauge(name: str, about: str, labels: Sequence[str] = (), *, max_series: int = MAX_SERIES) -> Gauge:
    return Gauge(name, about, labels, max_series)


def counter(
    name: str,
    about: str,
    labels: Sequence[str] = (),
    *,
    begin_with: Sequence[str] = (),
    max_series: int = MAX_SERIES,
) -> Counter:
    assert name.endswith("_total"), f"{name}: counters end in _total"
    assert not begin_with or len(labels) == 1
    return Counter(name, about, labels, max_series, begin_with)


def histogram(
    name: str,
    about: str,
    labels: Sequence[str] = (),
    *,
    buckets: Sequence[float] = SECONDS,
    max_series: int = MAX_SERIES,
) -> Histogram:
    return Histogram(name, about, labels, max_series, buckets)


def before_scrape(refresh: Callable[[], None]) -> None:
    """Call this in the thread of each scrape: it sets gauges. It reads plain values, and iterates over copies only."""
    _refreshers.append(refresh)


def exposed() -> bool:
    """Whether anybody keeps the values: to spare work that only a metric needs."""
    return _registry is not None


class MetricsServer:
    """Answers scrapes in threads of its own, so that also a process whose loop is stuck tells how it is."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.port: int = server.server_port
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(SCRAPE_TIMEOUT_S)


def serve_metrics(listen: str) -> MetricsServer | None:
    """Expose every declared metric at `http://<listen>/metrics`, without TLS; an empty address: nothing is kept.

    Raises InvalidInput for what is no host:port, Exhausted (code `port_taken`).
    """
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInput(
            f"metrics_listen {listen!r} is no host:port; write for example 0.0.0.0:9464", code="bad_settings"
        )
    from talkoo_runtime.metrics_http import make_server

    try:
        server = make_server(host, int(port), _expose())
    except (OSError, OverflowError) as error:
        raise Exhausted(
            f"cannot listen on {listen} ({error}); stop what has that port or change `metrics_listen`",
            code="port_taken",
        ) from None
    return MetricsServer(server)


_declared: dict[str, Metric] = {}
_refreshers: list[Callable[[], None]] = []
_registry: CollectorRegistry | None = None
_scraping = threading.Lock()


def _declare(metric: Metric) -> None:
    assert metric.name not in _declared, f"{metric.name} is declared twice"
    _declared[metric.name] = metric
    if _registry is not None:
        metric.expose(_registry)


def _expose() -> CollectorRegistry:
    global _registry
    if _registry is None:
        from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

        disable_created_metrics()  # type: ignore[no-untyped-call]
        _registry = CollectorRegistry()
        _registry.register(_Refresh())
        ProcessCollector(registry=_registry)
        for metric in _declared.values():
            metric.expose(_registry)
    return _registry


class _Refresh:
    """Registered first, so that it is asked before the gauges it sets."""

    def collect(self) -> list[Any]:
        with _scraping:
            for refresh in _refreshers:
                try:
                    refresh()
                except Exception:  # what one part cannot tell must not hide the others
                    log.exception("a metric could not be read")
        return []
