"""What the operator counts: looks at objects with their outcome, and the phases that its watch has told of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from talkoo_operator.metrics import NODE, TASK, Phases
from talkoo_operator.queue import Key, WorkQueue

from talkoo_core.errors import Unavailable
from talkoo_runtime.metrics import MetricsServer, serve_metrics
from talkoo_sim.scraping import Scraped, scrape


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    server = serve_metrics("127.0.0.1:0")
    assert server is not None
    yield server
    server.close()


def condition(status: str) -> dict[str, object]:
    return {"status": {"conditions": [{"type": "Joined", "status": status}]}}


async def test_objects_are_counted_by_phase_and_forgotten_when_they_go(server: MetricsServer) -> None:
    phases = Phases()
    phases.heard(TASK, ("a", "new"), None, {})
    phases.heard(TASK, ("a", "one"), "ADDED", {"status": {"phase": "Pending"}})
    phases.heard(TASK, ("a", "one"), "MODIFIED", {"status": {"phase": "Running"}})
    phases.heard(TASK, ("b", "two"), None, {"status": {"phase": "Running"}})
    phases.heard(NODE, ("", "in"), None, condition("True"))
    phases.heard(NODE, ("", "out"), None, condition("False"))

    def counted(scraped: Scraped) -> dict[tuple[str, str], float]:
        return {
            (dict(labels)["kind"], dict(labels)["phase"]): value
            for (name, labels), value in scraped.samples.items()
            if name == "talkoo_operator_objects"
        }

    assert counted(await scrape(server.port)) == {
        (TASK, "None"): 1,
        (TASK, "Running"): 2,
        (NODE, "Joined"): 1,
        (NODE, "NotJoined"): 1,
    }
    phases.heard(TASK, ("b", "two"), "DELETED", {"status": {"phase": "Running"}})
    phases.keep(TASK, {("a", "one")})
    assert counted(await scrape(server.port)) == {(TASK, "Running"): 1, (NODE, "Joined"): 1, (NODE, "NotJoined"): 1}


async def test_looks_are_counted_by_outcome_and_what_waits_is_told(server: MetricsServer) -> None:
    release, failed = asyncio.Event(), asyncio.Event()

    async def work(key: Key) -> float | None:
        if key[1] == "bad":
            failed.set()
            raise Unavailable("the API server is away")
        await release.wait()
        return None

    queue = WorkQueue(work, "Queued")
    running = asyncio.create_task(queue.run(1))
    queue.wake(("a", "bad"))
    await failed.wait()
    queue.wake(("a", "good"))
    queue.wake(("b", "good"))
    scraped = await scrape(server.port)
    assert scraped.value("talkoo_operator_queue_depth", kind="Queued") == 2
    assert scraped.value("talkoo_operator_reconciles_total", kind="Queued", outcome="failed") == 1
    release.set()
    while len(queue):
        await asyncio.sleep(0)
    scraped = await scrape(server.port)
    running.cancel()
    assert scraped.value("talkoo_operator_reconciles_total", kind="Queued", outcome="ok") == 2
    assert scraped.value("talkoo_operator_reconcile_seconds_count", kind="Queued") == 3
    assert scraped.value("talkoo_operator_queue_depth", kind="Queued") == 0
