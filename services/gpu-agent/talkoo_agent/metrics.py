"""What an agent tells Prometheus of its work; docs/monitoring.md explains each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_runtime.metrics import before_scrape, counter, gauge

STEPS = counter("talkoo_agent_steps_total", "Training steps that this node's shards have done.")
SAMPLES_PER_SECOND = gauge("talkoo_agent_samples_per_second", "What they train at the moment, all together.")
SHARDS = gauge("talkoo_agent_shards", "Shards on this node now.")
SLOTS = gauge("talkoo_agent_slots", "So many may be: one on each card that is lent and healthy, or at work.")
SEGMENTS = counter("talkoo_agent_segments_committed_total", "Segments whose commitment the ledger took.")
FAILURES = counter(
    "talkoo_agent_shard_failures_total", "Shards that ended by a failure, by its kind.", ["kind"], max_series=64
)
EARNED = counter(
    "talkoo_agent_earned_tlk_total", "Tokens paid to this node while its agent ran, by kind of payment.", ["kind"]
)
OFFERED = gauge("talkoo_agent_offered", "1 while the scheduler takes this node's offer.")
JAILED = gauge("talkoo_agent_jailed", "1 while the ledger holds this node jailed for forging.")


def watch_shards(rates: Callable[[], Iterable[float]], slots: Callable[[], int]) -> None:
    """`rates`: samples per second of each shard; both are read at each scrape."""

    def read() -> None:
        now = list(rates())
        SHARDS.set(len(now))
        SAMPLES_PER_SECOND.set(sum(now))
        SLOTS.set(slots())

    before_scrape(read)


def count_payment(event: service_pb2.Event, node_id: str) -> None:
    """Of a block that was followed."""
    if event.type == "payment" and event.subject == node_id:
        attributes = {attribute.key: attribute.value for attribute in event.attributes}
        EARNED.add(int(attributes["amount_utlk"]) / UTLK_PER_TLK, kind=attributes["kind"])
