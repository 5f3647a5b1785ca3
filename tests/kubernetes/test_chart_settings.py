"""Each settings file that the chart writes is read by the very process that gets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from talkoo_agent.settings import AgentSettings, check_settings
from talkoo_gateway.settings import GatewaySettings
from talkoo_ledger.settings import LedgerSettings
from talkoo_operator.cleanup import CleanupSettings
from talkoo_operator.identity import IdentitySettings
from talkoo_operator.join import JoinSettings
from talkoo_operator.settings import OperatorSettings
from talkoo_operator.trial import TrialSettings
from talkoo_scheduler.settings import SchedulerSettings
from talkoo_validator.settings import ValidatorSettings

from talkoo_runtime.pki import identity_uri
from talkoo_runtime.settings import load_settings
from talkoo_sim.cluster.chart import Object, containers, pod_templates, render

pytestmark = pytest.mark.usefixtures("helm")

STRUCTS: dict[str, type[msgspec.Struct]] = {
    "ledger": LedgerSettings,
    "scheduler": SchedulerSettings,
    "validator": ValidatorSettings,
    "gateway": GatewaySettings,
    "operator": OperatorSettings,
    "identity": IdentitySettings,
    "cleanup": CleanupSettings,
    "test": TrialSettings,
}
COMETBFT = {
    "ledger": {
        "engine": "cometbft",
        "rpc": {"enabled": True},
        "comet": {"peers": [f"{'a' * 40}@ledger.east.example:26656"], "logLevel": "info"},
    }
}
OTHERS = {
    "etcd": {"enabled": False, "endpoints": ["one.example:2379", "two.example:2379"]},
    "blobs": {"url": "s3://bucket/prefix?endpoint=https://s3.example", "secretName": "s3"},
    "operator": {"watchNamespaces": ["a", "b"]},
    "federation": {"accounts": [{"namespace": "a", "balance": "5 TLK"}, {"namespace": "b", "balance": "6.5 TLK"}]},
    "certificates": {"issuer": "cert-manager"},
}


def environment_of(objects: list[Object], component: str) -> dict[str, str]:
    """What the pod sets by itself; a field of the pod has some value there."""
    for _, pod in pod_templates(objects):
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] == component:
            return {
                env["name"]: str(env.get("value", "given-by-pod"))
                for container in containers(pod)
                for env in container.get("env", ())
            }
    raise AssertionError(f"no pod of {component}")


def files_of(objects: list[Object], component: str) -> dict[str, str]:
    (found,) = (
        each["data"]
        for each in objects
        if each["kind"] == "ConfigMap" and each["metadata"]["name"] == f"talkoo-{component}"
    )
    return dict(found)


def loaded(objects: list[Object], component: str, folder: Path) -> Any:
    path = folder / f"{component}.toml"
    path.write_text(files_of(objects, component)["settings.toml"])
    return load_settings(STRUCTS[component], path, environment_of(objects, component))


@pytest.mark.parametrize("values", [{}, COMETBFT, OTHERS], ids=["as it stands", "cometbft", "others"])
@pytest.mark.parametrize("component", STRUCTS)
def test_every_process_understands_its_settings(component: str, values: dict[str, Any], tmp_path: Path) -> None:
    settings = loaded(render(values), component, tmp_path)
    if hasattr(settings, "federation"):
        assert settings.federation == "talkoo"


def test_an_agent_understands_what_the_chart_and_its_node_say_together(tmp_path: Path) -> None:
    objects = render({"agents": {"duty": 0.5, "stake": "7.25 TLK", "memoryBytes": 1 << 40, "slots": 4}})
    files = files_of(objects, "agent")
    (tmp_path / "join.toml").write_text(files["join.toml"])
    join = load_settings(JoinSettings, tmp_path / "join.toml", environment_of(objects, "agent"))
    own = ("name", "listen", "state_dir", "account_key", "certificate", "private_key", "endorsement")
    lines = "".join(f"{name} = {json.dumps('x')}\n" for name in own)
    (tmp_path / "agent.toml").write_text(lines + files["agent.toml"])
    agent = load_settings(AgentSettings, tmp_path / "agent.toml", environment_of(objects, "agent"))
    check_settings(agent)
    assert (agent.duty, agent.stake_utlk, agent.memory_bytes, join.stake) == (0.5, 7_250_000, 1 << 40, "7.25 TLK")
    assert agent.slots == 4


def test_the_ledger_begins_with_the_other_founders(tmp_path: Path) -> None:
    founders = [{"organization": name, "namespace": f"of-{name}", "release": "talkoo"} for name in ("north", "east")]
    objects = render({"federation": {"founders": founders}})
    (peer,) = loaded(objects, "ledger", tmp_path).peers
    assert (peer.organization, peer.endpoint) == ("east", "talkoo-ledger.of-east.svc:7443")
    assert [msgspec.to_builtins(each) for each in loaded(objects, "identity", tmp_path).founders] == founders


def test_large_numbers_are_written_out(tmp_path: Path) -> None:
    values = {"ledger": {"haltHeight": 123_456_789_012}, "agents": {"powerMilliwatts": 3_000_000_000}}
    assert loaded(render(values), "ledger", tmp_path).halt_height == 123_456_789_012


def test_processes_call_each_other_where_their_services_are(tmp_path: Path) -> None:
    objects = render(COMETBFT)
    ports = {
        f"{each['metadata']['name']}.talkoo.svc:{port['port']}"
        for each in objects
        if each["kind"] == "Service"
        for port in each["spec"]["ports"]
    }
    gateway, scheduler = (loaded(objects, name, tmp_path) for name in ("gateway", "scheduler"))
    ledger = loaded(objects, "ledger", tmp_path)
    trial, operator = (loaded(objects, name, tmp_path) for name in ("test", "operator"))
    called = {gateway.ledger, gateway.scheduler, gateway.validator, scheduler.ledger, *scheduler.etcd}
    called |= {ledger.advertise, ledger.comet.advertise, trial.gateway, trial.http, operator.gateway}
    assert called <= ports


def test_settings_name_files_that_are_mounted(tmp_path: Path) -> None:
    objects = render()
    for _, pod in pod_templates(objects):
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        if component not in STRUCTS:
            continue
        mounts = [m["mountPath"] for c in pod["spec"]["containers"] for m in c["volumeMounts"]]
        for value in msgspec.to_builtins(loaded(objects, component, tmp_path)).values():
            if isinstance(value, str) and value.startswith("/"):
                assert any(value.startswith(mount) for mount in mounts), f"{component}: {value}"


@pytest.mark.parametrize("role", ["ledger", "scheduler", "validator", "gateway", "etcd", "operator"])
def test_certificates_of_cert_manager_name_services_as_our_own_do(role: str) -> None:
    objects = render(
        {"certificates": {"issuer": "cert-manager"}, "organization": "east", "federation": {"name": "fed"}}
    )
    (spec,) = (
        each["spec"]
        for each in objects
        if each["kind"] == "Certificate" and each["metadata"]["name"] == f"talkoo-{role}"
    )
    assert spec["uris"] == [identity_uri("fed", "east", "user" if role == "operator" else role, f"east-{role}")]
    assert {"localhost", f"talkoo-{role}", f"talkoo-{role}.talkoo.svc"} <= set(spec["dnsNames"])
    assert set(spec["usages"]) == {"digital signature", "server auth", "client auth"}
    (tls,) = {
        json.dumps(volume["secret"]["items"], sort_keys=True)
        for _, pod in pod_templates(objects)
        for volume in pod["spec"].get("volumes", ())
        if volume.get("secret", {}).get("secretName") == spec["secretName"]
    }
    assert {(item["key"], item["path"]) for item in json.loads(tls)} == {
        ("tls.crt", "certificate.pem"),
        ("tls.key", "private-key.pem"),
    }
    (authority,) = (each["spec"] for each in objects if each["kind"] == "Certificate" and each["spec"].get("isCA"))
    assert authority["subject"] == {"organizations": ["east"]}
    assert authority["secretName"] == spec["issuerRef"]["name"] == "talkoo-authority"


@pytest.mark.parametrize(
    ("values", "restarted"),
    [
        ({"ledger": {"haltHeight": 900}}, {"ledger"}),
        ({"agents": {"warmTrainer": False}}, {"agent"}),
        ({"operator": {"logLevel": "debug"}}, {"operator"}),
        ({"federation": {"name": "another"}}, {"ledger", "scheduler", "validator", "gateway", "operator", "agent"}),
    ],
    ids=["a setting of the ledger", "of agents", "of the operator", "of all"],
)
def test_a_setting_restarts_the_pods_that_read_it_and_no_others(values: Object, restarted: set[str]) -> None:
    def sums(objects: list[Object]) -> dict[str, str]:
        return {
            pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["metadata"]["annotations"][
                "checksum/settings"
            ]
            for _, pod in pod_templates(objects)
            if "checksum/settings" in pod["metadata"].get("annotations", {})
        }

    before, after = sums(render()), sums(render(values))
    assert set(before) == {"ledger", "scheduler", "validator", "gateway", "operator", "agent"}
    assert all(before.values())
    assert {role for role in before if before[role] != after[role]} == restarted
