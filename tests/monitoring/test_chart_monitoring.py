"""The chart's monitoring, as helm renders it: nothing unless asked for, else what the processes understand."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
import yaml
from talkoo_agent.settings import AgentSettings
from talkoo_gateway.settings import GatewaySettings
from talkoo_ledger.settings import LedgerSettings
from talkoo_operator.settings import OperatorSettings
from talkoo_scheduler.settings import SchedulerSettings
from talkoo_validator.settings import ValidatorSettings

from talkoo_core.errors import NotFound, TalkooError
from talkoo_sim.cluster.binaries import binary

CHART = Path(__file__).parents[2] / "helm" / "talkoo"
PORT = 9464
SETTINGS: dict[str, type[msgspec.Struct]] = {
    "ledger": LedgerSettings,
    "scheduler": SchedulerSettings,
    "validator": ValidatorSettings,
    "gateway": GatewaySettings,
    "operator": OperatorSettings,
    "agent": AgentSettings,
}
Rendered = dict[tuple[str, str], Any]


@pytest.fixture
def render(leave_out: Callable[[TalkooError], NoReturn]) -> Callable[..., Rendered]:
    try:
        helm = binary("helm")
    except NotFound as error:
        leave_out(error)

    def run(*values: str) -> Rendered:
        command = [helm, "template", "t", str(CHART), "--namespace", "home", *(f"--set={value}" for value in values)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        documents = [document for document in yaml.safe_load_all(done.stdout) if document]
        return {(document["kind"], document["metadata"]["name"]): document for document in documents}

    return run


def settings_of(rendered: Rendered, role: str) -> dict[str, Any]:
    data = rendered["ConfigMap", f"t-{role}"]["data"]
    return tomllib.loads(data["agent.toml" if role == "agent" else "settings.toml"])


def test_unless_asked_for_nothing_listens_and_no_crd_is_needed(render: Callable[..., Rendered]) -> None:
    rendered = render("monitoring.serviceMonitor.enabled=true", "monitoring.rules.enabled=true")
    assert not [name for kind, name in rendered if name.endswith("-metrics")]
    assert not {"ServiceMonitor", "PrometheusRule"} & {kind for kind, _ in rendered}
    assert all("metrics_listen" not in settings_of(rendered, role) for role in SETTINGS)


def test_each_part_gets_the_setting_and_a_service_that_leads_to_its_pods(render: Callable[..., Rendered]) -> None:
    rendered = render("monitoring.enabled=true")
    for role, kind in SETTINGS.items():
        settings = settings_of(rendered, role)
        assert settings["metrics_listen"] == f"0.0.0.0:{PORT}"
        assert settings.keys() <= {field.name for field in msgspec.structs.fields(kind)}
        spec = rendered["Service", f"t-{role}-metrics"]["spec"]
        assert [port["targetPort"] for port in spec["ports"]] == [PORT]
        pods = next(
            document["spec"]["template"]["metadata"]["labels"]
            for (of, name), document in rendered.items()
            if name == f"t-{role}" and of in ("StatefulSet", "Deployment", "DaemonSet")
        )
        assert spec["selector"].items() <= pods.items()
        allowed = rendered["NetworkPolicy", "t-metrics"]["spec"]["podSelector"]
        assert allowed["matchLabels"].items() <= pods.items()
        assert pods["app.kubernetes.io/component"] in allowed["matchExpressions"][0]["values"]
    assert not {"ServiceMonitor", "PrometheusRule"} & {kind for kind, _ in rendered}


def test_what_the_prometheus_operator_and_grafana_look_for_is_there(render: Callable[..., Rendered]) -> None:
    rendered = render(
        "monitoring.enabled=true",
        "monitoring.serviceMonitor.enabled=true",
        "monitoring.serviceMonitor.labels.release=stack",
        "monitoring.rules.enabled=true",
        "monitoring.rules.labels.release=stack",
        "monitoring.dashboards.enabled=true",
    )
    monitor, rule = rendered["ServiceMonitor", "t"], rendered["PrometheusRule", "t"]
    assert monitor["metadata"]["labels"]["release"] == rule["metadata"]["labels"]["release"] == "stack"
    selected = [
        document
        for (kind, _), document in rendered.items()
        if kind == "Service"
        and monitor["spec"]["selector"]["matchLabels"].items() <= document["metadata"]["labels"].items()
    ]
    assert len(selected) == len(SETTINGS)
    assert all(monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"] for service in selected)
    assert rule["spec"] == yaml.safe_load((CHART / "rules" / "alerts.yaml").read_text())
    for path in (CHART / "dashboards").glob("*.json"):
        found = rendered["ConfigMap", f"t-dashboard-{path.stem}"]
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(found["data"][path.name]) == json.loads(path.read_text())
