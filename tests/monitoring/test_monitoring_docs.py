"""docs/monitoring.md holds every metric, alert and setting; alerts and dashboards use no metric that is not there."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from talkoo_operator.settings import OperatorSettings

from talkoo_runtime import metrics
from talkoo_runtime.metrics import Histogram, Metric
from talkoo_runtime.service_settings import ServiceSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
ALERTS = yaml.safe_load((ROOT / "helm" / "talkoo" / "rules" / "alerts.yaml").read_text(encoding="utf-8"))
RULES = {rule["alert"]: rule for group in ALERTS["groups"] for rule in group["rules"]}
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "helm" / "talkoo" / "dashboards").glob("*.json"))
}
NOT_OURS = {"up", "process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes"}
"""Of Prometheus itself and of the client library."""
NAME = re.compile(r"\b(?:(?:talkoo|process)_[a-z0-9_]+|up)\b")


def modules() -> Iterator[str]:
    """Whatever imports our metrics, by its import name."""
    for folder in (ROOT / "src", *(ROOT / "services").iterdir(), ROOT / "operator"):
        for path in sorted(folder.rglob("*.py")):
            if "from talkoo_runtime.metrics import" in path.read_text(encoding="utf-8"):
                yield ".".join(path.relative_to(folder).with_suffix("").parts)


@pytest.fixture(scope="module")
def declared() -> dict[str, Metric]:
    for name in modules():
        importlib.import_module(name)
    return {name: metric for name, metric in metrics._declared.items() if not name.startswith("talkoo_test_")}


def queries() -> Iterator[tuple[str, str]]:
    yield from ((f"alert {name}", rule["expr"]) for name, rule in RULES.items())
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            yield from ((f"{name}: {panel['title']}", target["expr"]) for target in panel["targets"])


def test_the_page_has_each_metric_as_the_code_declares_it_and_no_other(declared: dict[str, Metric]) -> None:
    written = re.findall(r"^\| `(talkoo_\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", PAGE, re.MULTILINE)
    assert {row[0]: row for row in written} == {
        name: (name, type(metric).__name__.lower(), ", ".join(f"`{each}`" for each in metric.labels), metric.about)
        for name, metric in declared.items()
    }
    assert len(written) == len(declared)


@pytest.mark.parametrize(("where", "query"), list(queries()), ids=[where for where, _ in queries()])
def test_a_query_asks_for_metrics_and_labels_that_are_there(
    where: str, query: str, declared: dict[str, Metric]
) -> None:
    exposed = {
        f"{name}{suffix}"
        for name, metric in declared.items()
        for suffix in (("_bucket", "_sum", "_count") if isinstance(metric, Histogram) else ("",))
    }
    used = set(NAME.findall(re.sub(r'"[^"]*"', "", query)))
    assert used
    assert used <= exposed | NOT_OURS
    of_targets = {"job", "instance", "namespace", "le"}
    labels = {label for name in used for label in getattr(declared.get(_base(name, declared)), "labels", ())}
    assert set(re.findall(r"[{,](\w+)=", query)) <= labels | of_targets
    grouped = {each.strip() for group in re.findall(r"\bby \((.*?)\)", query) for each in group.split(",")}
    assert grouped <= labels | of_targets


def _base(name: str, declared: dict[str, Metric]) -> str:
    bare = re.sub(r"_(bucket|sum|count)$", "", name)
    return name if name in declared else bare


def test_each_alert_says_what_to_do_and_nothing_else_is_explained() -> None:
    sections = re.findall(r"^### (Talkoo\w+)$", PAGE, re.MULTILINE)
    assert sections == list(RULES)
    for rule in RULES.values():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]


def test_each_dashboard_can_stand_beside_the_others() -> None:
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 4
    for dashboard in DASHBOARDS.values():
        panels: list[dict[str, Any]] = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
        assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)


@pytest.mark.parametrize("settings", [ServiceSettings, OperatorSettings])
def test_every_process_has_the_setting_and_it_is_off_unless_asked_for(settings: type[msgspec.Struct]) -> None:
    found = {field.name: field.default for field in msgspec.structs.fields(settings)}
    assert found["metrics_listen"] == ""
    assert "| `metrics_listen` | empty: off |" in PAGE
