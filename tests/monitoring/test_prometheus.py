"""Prometheus' own programs judge our metrics and alerts, and a real Prometheus collects from a real ledger node."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from talkoo_core.errors import TalkooError, Unavailable
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.ports import free_port, free_ports
from talkoo_sim.scraping import scrape

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm" / "talkoo" / "rules" / "alerts.yaml"
EVERYTHING = """
import importlib, sys, urllib.request
from talkoo_runtime.metrics import Counter, Histogram, _declared, serve_metrics
for name in sys.argv[1:]:
    importlib.import_module(name)
server = serve_metrics("127.0.0.1:0")
for metric in _declared.values():  # a series of each, because none is written for a metric that has no series yet
    labels = {label: "x" for label in metric.labels}
    if isinstance(metric, Histogram):
        metric.observe(1, **labels)
    elif isinstance(metric, Counter):
        metric.add(1, **labels)
    else:
        metric.set(1, **labels)
sys.stdout.write(urllib.request.urlopen(f"http://127.0.0.1:{server.port}/").read().decode())
"""
LeaveOut = Callable[[TalkooError], NoReturn]


def test_the_alerts_are_rules_and_fire_when_they_should(program: Callable[[str], Path], tmp_path: Path) -> None:
    promtool = program("promtool")
    shutil.copy(RULES, tmp_path)
    shutil.copy(Path(__file__).parent / "alerts_test.yaml", tmp_path)
    for command in (["check", "rules", RULES.name], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(
            [promtool, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_name_and_unit_is_as_prometheus_wants_it(program: Callable[[str], Path]) -> None:
    promtool = program("promtool")
    rooms = ["ledger", "scheduler", "validator", "gateway", "agent", "operator"]
    names = [
        "talkoo_runtime.grpc_metrics",
        "talkoo_runtime.process_metrics",
        *(f"talkoo_{room}.metrics" for room in rooms),
    ]
    page = subprocess.run(
        [sys.executable, "-c", EVERYTHING, *names], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert all(f"talkoo_{room}_" in page for room in rooms)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Prometheus:
    """A real one, with our alerts, that asks every second."""

    def __init__(self, program: Path, folder: Path, targets: dict[str, int]) -> None:
        self.port = free_port()
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {
                    "job_name": "talkoo-ledger",
                    "static_configs": [
                        {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": name}}
                        for name, port in targets.items()
                    ],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        self.log = folder / "prometheus.log"
        arguments = [
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/prometheus",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)

    async def ask(self, path: str, **query: str) -> Any:
        def read() -> Any:
            url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]

        try:
            return await asyncio.to_thread(read)
        except OSError as error:
            raise Unavailable(f"Prometheus does not answer: {error}; {self.log.read_text()[-500:]}") from None

    async def values(self, query: str) -> dict[str, float]:
        """By namespace, which is here the organization."""
        found = (await self.ask("query", query=query))["result"]
        return {each["metric"].get("namespace", ""): float(each["value"][1]) for each in found}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
async def ledgers(tmp_path: Path) -> AsyncIterator[Ledgers]:
    federation = Ledgers(tmp_path)
    yield federation
    await federation.close()


async def test_a_real_prometheus_collects_and_its_alerts_hear_of_a_member_that_is_gone(
    program: Callable[[str], Path], ledgers: Ledgers, tmp_path: Path
) -> None:
    prometheus_program = program("prometheus")
    ports = dict(zip(ledgers.names, free_ports(len(ledgers.names)), strict=True))
    for name, port in ports.items():
        ledgers.write_settings(name, metrics_listen=f"127.0.0.1:{port}")
    ledgers.start()
    prometheus = Prometheus(prometheus_program, tmp_path, ports)
    try:
        await ledgers.reach(3)
        *_, last = ledgers.names

        async def all_told() -> bool:
            heights = await prometheus.values("talkoo_ledger_height")
            return set(heights) == set(ports) and min(heights.values()) >= 3

        await ledgers.eventually(all_told, "Prometheus has heard of block 3 from every node")
        own = (await scrape(ports[last])).value("talkoo_ledger_height")
        assert (await prometheus.values("talkoo_ledger_height"))[last] <= own
        rules = [rule for group in (await prometheus.ask("rules"))["groups"] for rule in group["rules"]]
        assert len(rules) == RULES.read_text().count("- alert:")

        async def all_evaluated() -> bool:
            groups = (await prometheus.ask("rules"))["groups"]
            return all(rule["health"] == "ok" for group in groups for rule in group["rules"])

        await ledgers.eventually(all_evaluated, "Prometheus can evaluate every alert")
        ledgers.stop(last, how=signal.SIGKILL)

        async def told() -> bool:
            alerts = (await prometheus.ask("alerts"))["alerts"]
            down = [alert["labels"] for alert in alerts if alert["labels"]["alertname"] == "TalkooProcessDown"]
            return [labels["namespace"] for labels in down] == [last]

        await ledgers.eventually(told, f"an alert speaks of {last}, and of nobody else")
    finally:
        prometheus.stop()
