"""What a validator tells Prometheus; docs/monitoring.md explains each."""

from __future__ import annotations

from collections.abc import Callable

from talkoo_api.ledger.v1 import tx_pb2

from talkoo_runtime.metrics import before_scrape, counter, gauge, histogram

AUDITS = counter(
    "talkoo_validator_audits_total",
    "Audits by this validator's own verdict: honest, forged, unavailable (nobody is blamed), none (it gave up).",
    ["verdict"],
    begin_with=["honest", "forged", "unavailable", "none"],
)
RECOMPUTE_SECONDS = histogram(
    "talkoo_validator_recompute_seconds",
    "Time to fetch and to compute one segment again.",
    buckets=(0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1200, 3600),
)
OPEN = gauge("talkoo_validator_audits_open", "Audits in work or in line.")
CACHE_BYTES = gauge("talkoo_validator_cache_bytes", "Blobs kept between audits.")
CACHE_LIMIT = gauge("talkoo_validator_cache_limit_bytes", "`cache_bytes` of the settings.")
HEIGHT = gauge("talkoo_validator_height", "Last block that this validator has read.")


def count_verdict(verdict: tx_pb2.Verdict, duration_s: float) -> None:
    RECOMPUTE_SECONDS.observe(duration_s)
    if not verdict.available:
        AUDITS.add(verdict="unavailable")
    else:
        AUDITS.add(verdict="honest" if all(finding.honest for finding in verdict.findings) else "forged")


def count_given_up() -> None:
    AUDITS.add(verdict="none")


def watch_audits(
    opened: Callable[[], int], height: Callable[[], int], cache_bytes: Callable[[], int], limit_bytes: int
) -> None:
    """Read these at each scrape."""

    def read() -> None:
        OPEN.set(opened())
        HEIGHT.set(height())
        CACHE_BYTES.set(cache_bytes())
        CACHE_LIMIT.set(limit_bytes)

    before_scrape(read)
