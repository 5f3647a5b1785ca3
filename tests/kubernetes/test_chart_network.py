"""NetworkPolicies: everything is denied, and what each part's settings name is allowed at both ends.

These tests hold them against what the processes call; `test_two_clusters` has them enforced.
"""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from talkoo_sim.cluster.chart import Object, pod_templates, render

pytestmark = pytest.mark.usefixtures("helm")

EXTERNAL = {
    "etcd": {"enabled": False, "endpoints": ["one.example:2379", "two.example:2380"]},
    "blobs": {"url": "s3://bucket?endpoint=https://s3.example", "secretName": "s3"},
}


def policies(objects: list[Object]) -> dict[str, Object]:
    return {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NetworkPolicy"}


def component(peer: Object) -> str:
    return str(peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component", ""))


def allowed(spec: Object, way: str, peers: str) -> set[tuple[str, int]]:
    """(component, port) of each rule between parts of the release; port 0: all."""
    return {
        (component(peer), port["port"])
        for rule in spec.get(way, ())
        for peer in rule.get(peers, ())
        if component(peer)
        for port in rule.get("ports", ({"port": 0},))
    }


def test_every_pod_of_the_release_is_denied_all_but_names() -> None:
    objects = render()
    spec = policies(objects)["talkoo-default-deny"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in spec
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53]
    for name, pod in pod_templates(objects):
        assert spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items(), name


def test_names_are_looked_up_where_the_cluster_s_name_server_listens() -> None:
    values = {
        "networkPolicies": {"dnsNamespace": "openshift-dns", "dnsPorts": [5353], "dnsCidrs": ["169.254.20.10/32"]}
    }
    (rule,) = policies(render(values))["talkoo-default-deny"]["egress"]
    assert rule["ports"] == [{"port": 5353, "protocol": protocol} for protocol in ("UDP", "TCP")]
    assert rule["to"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}}},
        {"ipBlock": {"cidr": "169.254.20.10/32"}},
    ]


def test_every_component_that_has_pods_has_its_policy() -> None:
    objects = render()
    components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for _, pod in pod_templates(objects)}
    assert {f"talkoo-{each}" for each in components} | {"talkoo-default-deny"} == policies(objects).keys()


def test_whom_settings_name_may_be_called_and_takes_the_call() -> None:
    objects = render()
    found = policies(objects)
    ports = {(s["metadata"]["name"], p["port"]) for s in objects if s["kind"] == "Service" for p in s["spec"]["ports"]}
    calls = 0
    for config in (each for each in objects if each["kind"] == "ConfigMap"):
        caller = config["metadata"]["labels"]["app.kubernetes.io/component"]
        for text in config["data"].values():
            for service, port in ports:
                address = f"{service}.talkoo.svc:{port}"
                values = str(tomllib.loads(text))
                if address not in values or service == f"talkoo-{caller}":
                    continue
                calls += 1
                called = service.removeprefix("talkoo-")
                assert (called, port) in allowed(found[f"talkoo-{caller}"], "egress", "to"), f"{caller} → {address}"
                ingress = found[service]["ingress"]
                open_to_all = any(
                    "from" not in rule and {"port": port, "protocol": "TCP"} in rule["ports"] for rule in ingress
                )
                assert open_to_all or (caller, port) in allowed(found[service], "ingress", "from"), (
                    f"{address} ← {caller}"
                )
    assert calls >= 12


def test_what_is_not_called_for_is_not_allowed() -> None:
    found = policies(render())
    takes = {name: {who for who, _ in allowed(spec, "ingress", "from")} for name, spec in found.items()}
    assert takes["talkoo-etcd"] == {"scheduler"}
    assert takes["talkoo-storage"] == {"validator", "gateway", "agent"}
    assert takes["talkoo-ledger"] == {"scheduler", "validator", "gateway", "agent"}
    assert not takes["talkoo-operator"] | takes["talkoo-identity"] | takes["talkoo-cleanup"] | takes["talkoo-test"]
    assert "egress" not in found["talkoo-etcd"]
    assert "egress" not in found["talkoo-storage"]
    assert "egress" not in found["talkoo-ledger"]


def test_agents_meet_each_other_at_any_port() -> None:
    spec = policies(render())["talkoo-agent"]
    assert ("agent", 0) in allowed(spec, "ingress", "from")
    assert ("agent", 0) in allowed(spec, "egress", "to")


def test_only_who_has_a_service_account_reaches_the_api_server() -> None:
    objects = render({"networkPolicies": {"apiServerCidrs": ["10.0.0.1/32"], "apiServerPorts": [6443]}})
    rule = {"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}], "ports": [{"port": 6443, "protocol": "TCP"}]}
    reach = {name.removeprefix("talkoo-") for name, spec in policies(objects).items() if rule in spec.get("egress", ())}
    with_account = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for _, pod in pod_templates(objects)
        if "serviceAccountName" in pod["spec"]
    }
    assert reach == with_account


def test_stores_of_ones_own_are_reached_at_their_ports() -> None:
    found = policies(render(EXTERNAL))
    ports = {
        name: [p["port"] for rule in spec.get("egress", ()) if "to" not in rule for p in rule["ports"]]
        for name, spec in found.items()
    }
    assert ports["talkoo-scheduler"] == [2379, 2380]
    assert ports["talkoo-validator"] == ports["talkoo-gateway"] == ports["talkoo-agent"] == [443]
    assert not {"talkoo-etcd", "talkoo-storage"} & found.keys()


@pytest.mark.parametrize(("engine", "ports"), [("embedded", [7443]), ("cometbft", [7443, 26656])])
def test_other_members_reach_the_ledger_only_where_they_are_named(engine: str, ports: list[int]) -> None:
    values: dict[str, Any] = {"ledger": {"engine": engine}, "networkPolicies": {"memberCidrs": ["203.0.113.0/24"]}}
    member = {"ipBlock": {"cidr": "203.0.113.0/24"}}
    ledger = policies(render(values))["talkoo-ledger"]
    (ingress,) = (rule for rule in ledger["ingress"] if member in rule["from"])
    assert [port["port"] for port in ingress["ports"]] == ports
    assert ledger["egress"] == [{"to": [member]}]
    assert "203.0.113.0/24" not in str(policies(render({"ledger": {"engine": engine}})))


def test_the_gateway_is_open_to_whom_the_values_name() -> None:
    who = {"namespaceSelector": {"matchLabels": {"team": "vision"}}}
    spec = policies(render({"networkPolicies": {"gatewayFrom": [who]}}))["talkoo-gateway"]
    assert spec["ingress"][0]["from"] == [who]
    assert "from" not in policies(render())["talkoo-gateway"]["ingress"][0]


def test_founders_in_this_cluster_reach_each_other() -> None:
    founders = [{"organization": name, "namespace": f"of-{name}", "release": "talkoo"} for name in ("north", "east")]
    found = policies(render({"federation": {"founders": founders}}))
    east = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "of-east"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "talkoo", "app.kubernetes.io/instance": "talkoo"}},
    }
    reach = {name for name, spec in found.items() if {"to": [east]} in spec.get("egress", ())}
    let_in = {name for name, spec in found.items() for rule in spec.get("ingress", ()) if rule.get("from") == [east]}
    assert reach == {"talkoo-ledger", "talkoo-agent", "talkoo-gateway"}
    assert let_in == {"talkoo-ledger", "talkoo-agent"}
