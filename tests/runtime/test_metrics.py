"""Metrics: kept only where they are asked for, bounded in labels, connections and time."""

from __future__ import annotations

import datetime
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from talkoo_core.errors import Exhausted, InvalidInput
from talkoo_runtime import metrics
from talkoo_runtime.metrics import MAX_SCRAPES, MetricsServer, before_scrape, counter, gauge, histogram, serve_metrics
from talkoo_runtime.pki import CERTIFICATE_DAYS, create_authority, identity_uri, issue
from talkoo_runtime.process_metrics import watch_process

EARLY = gauge("talkoo_test_early_bytes", "Declared before anybody serves.", ["kind"], max_series=2)


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    server = serve_metrics("127.0.0.1:0")
    assert server is not None
    yield server
    server.close()


def scrape(server: MetricsServer) -> dict[tuple[str, frozenset[str]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_without_an_address_nothing_is_kept_and_the_library_is_not_loaded() -> None:
    code = (
        "import sys; from talkoo_runtime.metrics import *; from talkoo_runtime.process_metrics import watch_process\n"
        "gauge('talkoo_a_bytes', 'A').set(1); counter('talkoo_b_total', 'B', ['c']).add(c='d')\n"
        "histogram('talkoo_e_seconds', 'E').observe(1); assert watch_process('', 'no such file', '.') is None\n"
        "sys.exit(any(name.startswith(('prometheus_client', 'http.server', 'wsgiref')) for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_metrics_of_each_kind_move_and_late_ones_join(server: MetricsServer) -> None:
    late, spent = counter("talkoo_test_late_total", "L", ["result"]), histogram("talkoo_test_seconds", "S")
    counter("talkoo_test_rare_total", "R", ["kind"], begin_with=["forged"])
    EARLY.set(7, kind="a")
    late.add(result="ok")
    late.add(2, result="ok")
    spent.observe(0.3)
    found = scrape(server)
    assert found["talkoo_test_early_bytes", frozenset({"a"})] == 7
    assert found["talkoo_test_rare_total", frozenset({"forged"})] == 0
    assert found["talkoo_test_late_total", frozenset({"ok"})] == 3
    assert found["talkoo_test_seconds_bucket", frozenset({"0.25"})] == 0
    assert found["talkoo_test_seconds_bucket", frozenset({"0.5"})] == 1
    assert found["process_resident_memory_bytes", frozenset()] > 1e6
    assert not [name for name, _ in found if name.endswith("_created")]


def test_labels_beyond_the_bound_are_booked_together(server: MetricsServer) -> None:
    met = counter("talkoo_test_met_total", "M", ["whom"], max_series=3)
    for number in range(10):
        met.add(whom=f"stranger-{number}")
    found = {labels: value for (name, labels), value in scrape(server).items() if name == "talkoo_test_met_total"}
    assert len(found) == 4
    assert found[frozenset({"other"})] == 7


def test_a_gauge_is_refreshed_at_the_scrape_and_forgets_what_is_gone(server: MetricsServer) -> None:
    present = {"north": 1.0, "south": 2.0}
    peers = gauge("talkoo_test_peers", "P", ["peer"])

    def refresh() -> None:
        peers.clear()
        for name, value in present.items():
            peers.set(value, peer=name)

    before_scrape(refresh)
    assert scrape(server)["talkoo_test_peers", frozenset({"south"})] == 2
    del present["south"]
    assert {labels for name, labels in scrape(server) if name == "talkoo_test_peers"} == {frozenset({"north"})}


def test_a_part_that_cannot_be_read_hides_no_other(
    server: MetricsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_refreshers", [])
    after = gauge("talkoo_test_after_bytes", "A")
    before_scrape(lambda: EARLY.set(1 / 0, kind="a"))
    before_scrape(lambda: after.set(5))
    assert scrape(server)["talkoo_test_after_bytes", frozenset()] == 5
    assert "a metric could not be read" in caplog.text


def test_connections_beyond_the_bound_are_closed_and_leave_room_again(server: MetricsServer) -> None:
    with ExitStack() as held:
        for _ in range(MAX_SCRAPES):
            held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10)).sendall(b"GET /")
        refused = held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        assert refused.recv(1) == b""
    for _ in range(100):  # the server's threads see the ends of the connections one after the other
        try:
            assert scrape(server)
            return
        except OSError:
            continue
    pytest.fail("the server takes no scrape any more")


def test_a_taken_port_and_a_wrong_address_are_told(server: MetricsServer) -> None:
    with pytest.raises(Exhausted, match="metrics_listen"):
        serve_metrics(f"127.0.0.1:{server.port}")
    for wrong in ("9464", "localhost:", ":x", "127.0.0.1:99999"):
        with pytest.raises((InvalidInput, Exhausted), match="metrics_listen"):
            serve_metrics(wrong)


def test_a_process_tells_its_version_certificate_and_disk(tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.pem"
    now = datetime.datetime.now(datetime.UTC)
    certificate.write_bytes(issue(create_authority("north", now), identity_uri("t", "north", "ledger", "n"), now)[0])
    server = watch_process("127.0.0.1:0", str(certificate), str(tmp_path))
    assert server is not None
    found = {name: value for (name, _), value in scrape(server).items()}
    server.close()
    assert found["talkoo_build_info"] == 1
    end = now + datetime.timedelta(days=CERTIFICATE_DAYS)
    assert found["talkoo_certificate_expiry_timestamp_seconds"] == int(end.timestamp())
    assert 0 < found["talkoo_state_disk_free_bytes"] < found["talkoo_state_disk_size_bytes"]
