"""Two organizations with a real cluster each, the second one only dials out; they share nothing but an invitation.

NetworkPolicies are enforced in both, and south's certificates are cert-manager's. The tests of this file are steps of
one story, in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from talkoo_core.amounts import parse_tlk
from talkoo_core.errors import InvalidInput, NotFound, TalkooError
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.cluster.deployment import Deployment
from talkoo_sim.cluster.layout import Layout
from talkoo_sim.cluster.network import only_outward, set_link
from talkoo_sim.cluster.own_images import ROOT

EXAMPLE = ROOT / "examples" / "digits"
TASK_S = 900.0
PORTS = {"ledger": 30100, "scheduler": 30101, "gateway": 30102}
SERVED = (
    ("ledger", 7443),
    ("scheduler", 7443),
    ("gateway", 7443),
    ("validator", 7443),
    ("etcd", 2379),
    ("storage", 8333),
)
CALLS = """
import json, socket, sys
for name, port in json.loads(sys.argv[2]).items():
    try:
        socket.create_connection((f"{name}.{sys.argv[1]}.svc", port), 2).close()
        print(name)
    except (ConnectionRefusedError, TimeoutError):
        pass
"""
"""Prints which services of a namespace (the first argument) take a connection; a name that is not found is an error."""
SOUTH_TLK, TASK_TLK = "60 TLK", "40 TLK"


@dataclass(slots=True)
class Pair:
    north: Deployment
    south: Deployment


def invite(north: Deployment) -> str:
    return str(north.cluster.get("-n", north.namespace, "configmap", "talkoo-invitation")["data"]["invitation.json"])


def federation(deployment: Deployment) -> dict[str, Any]:
    return dict(deployment.cluster.get("-n", deployment.namespace, "federation", "federation").get("status", {}))


def member(deployment: Deployment, name: str) -> dict[str, Any]:
    return next((each for each in federation(deployment).get("members", ()) if each["name"] == name), {})


def trusted(deployment: Deployment) -> list[str]:
    """Subjects of the authorities that its parts trust."""
    return [each["subject"] for each in federation(deployment).get("certificates", ()) if each["name"] == "trusted"]


def submit(deployment: Deployment, name: str, **spec: Any) -> None:
    """The example, under another name and changed."""
    task = yaml.safe_load((EXAMPLE / "task.yaml").read_text())
    task["metadata"]["name"] = name
    task["spec"] |= spec
    deployment.cluster.kubectl("apply", "--server-side", "-k", str(EXAMPLE))
    deployment.cluster.kubectl("delete", "trainingtask", "digits", "--wait=false")
    deployment.cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(task))


def status(deployment: Deployment, name: str) -> dict[str, Any]:
    found = dict(deployment.cluster.get("trainingtask", name).get("status", {}))
    assert found.get("reason") not in ("InvalidSpec", "InsufficientFunds"), found
    assert found.get("phase") not in ("Failed", "Cancelled"), found
    return found


def succeeded(deployment: Deployment, name: str) -> dict[str, Any] | None:
    found = status(deployment, name)
    return found if found.get("phase") == "Succeeded" else None


@pytest.fixture(scope="module")
def made() -> Iterator[list[Cluster]]:
    clusters: list[Cluster] = []
    yield clusters
    for each in clusters:
        each.down()


@pytest.fixture(scope="module")
def story() -> dict[str, Pair]:
    return {}


@pytest.fixture
def pair(
    made: list[Cluster],
    story: dict[str, Pair],
    cluster_name: str,
    leave_out: Callable[[TalkooError], NoReturn],
    eventually: Callable[..., Any],
) -> Pair:
    """North founded the federation and is reachable; south has what north's invitation says, and nothing else of it."""
    if not story:
        try:
            for suffix in ("n", "s"):
                cluster = Cluster(Layout(f"{cluster_name}{suffix}", nodes=1))
                cluster.down()  # what an earlier run left behind, because it was killed
                made.append(cluster)
                cluster.up()
                cluster.enforce_policies()
            made[1].start_cert_manager()
        except (NotFound, InvalidInput) as error:
            leave_out(error)
        first, second = made
        only_outward(second.layout)
        host = first.layout.node_address(1)
        north = Deployment(
            first,
            {
                "exposure": {"type": "NodePort"}
                | {part: {"endpoint": f"{host}:{port}", "nodePort": port} for part, port in PORTS.items()},
                "agents": {"exposed": True},
            },
        )
        north.prepare()
        north.install()
        north.wait_ready()
        invitation = eventually(lambda: invite(north), "north invites")
        south = Deployment(
            second,
            {
                "organization": "south",
                "certificates": {"issuer": "cert-manager"},
                "federation": {
                    "invitation": invitation,
                    "stake": "100 TLK",  # north's chain goes on without it
                    "grant": "400 TLK",
                    "accounts": [{"namespace": "default", "balance": SOUTH_TLK}],
                },
                "ledger": {"outboundOnly": True},
                "agents": {"outboundOnly": True},
            },
        )
        south.prepare()
        south.install()
        story["pair"] = Pair(north, south)
    return story["pair"]


@pytest.mark.timeout(900)
def test_south_applies_and_is_a_member_when_north_has_consented(pair: Pair, eventually: Callable[..., Any]) -> None:
    application = eventually(
        lambda: pair.south.cluster.get("-n", pair.south.namespace, "configmap", "talkoo-application")["data"],
        "south's application is there",
    )["application.yaml"]

    pair.north.cluster.kubectl("-n", pair.north.namespace, "apply", "-f", "-", stdin=application)

    eventually(lambda: member(pair.north, "south"), "north sees the member")
    pair.south.wait_ready()
    eventually(lambda: federation(pair.south).get("height", 0) > 0, "south follows the chain")
    eventually(lambda: member(pair.south, "south").get("power", 0) > 0, "south's stake votes")
    eventually(lambda: any("south" in each for each in trusted(pair.north)), "north trusts south's authority")
    nodes = eventually(
        lambda: [
            node
            for node in pair.south.cluster.get("gpunodes")["items"]
            if any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))
        ],
        "south's node is ready",
    )
    assert [node["metadata"]["name"] for node in nodes] == pair.south.cluster.layout.node_names()


@pytest.mark.timeout(1200)
def test_a_task_of_north_is_trained_partly_in_south_and_both_are_paid(
    pair: Pair, eventually: Callable[..., Any]
) -> None:
    submit(pair.north, "both", nodes={"min": 2, "max": 2})

    done = eventually(lambda: succeeded(pair.north, "both"), "the task ends", TASK_S)

    ours, theirs = (each.cluster.layout.node_names() for each in (pair.north, pair.south))
    assert set(done["workers"]) == {*ours, *theirs}
    assert parse_tlk(done["tokens"]["spent"]) > 0
    said = pair.south.cluster.kubectl("-n", pair.south.namespace, "logs", "daemonset/talkoo-agent", "-c", "agent")
    assert "meets rank 0 of north through its agent" in said
    models = eventually(lambda: pair.north.cluster.get("modelversions")["items"], "the model is registered")
    assert models[0]["spec"]["heldout"]["correct"] / models[0]["spec"]["heldout"]["total"] > 0.9


@pytest.mark.timeout(1200)
def test_a_task_of_south_goes_on_where_it_stood_after_the_link_was_cut_and_healed(
    pair: Pair, eventually: Callable[..., Any]
) -> None:
    submit(pair.south, "cut", nodes={"min": 2, "max": 2}, seed=5, budget=TASK_TLK, model={"name": "cut"})
    eventually(
        lambda: status(pair.south, "cut").get("segments", {}).get("committed", 0) >= 1, "a segment is committed", TASK_S
    )

    set_link(pair.south.cluster.layout, up=False)
    try:
        eventually(lambda: "south" not in federation(pair.north)["peers"], "north misses south")
        before = federation(pair.north)["height"]
        eventually(lambda: federation(pair.north)["height"] > before + 5, "north's chain goes on")
    finally:
        set_link(pair.south.cluster.layout, up=True)

    done = eventually(lambda: succeeded(pair.south, "cut"), "the task ends", TASK_S)
    assert parse_tlk(done["tokens"]["escrowed"]) == 0
    assert "south" in eventually(lambda: federation(pair.north)["peers"], "they are connected again")
    assert federation(pair.south)["chainId"] == federation(pair.north)["chainId"]


@pytest.mark.timeout(600)
def test_south_leaves_and_is_trusted_no_more(pair: Pair, eventually: Callable[..., Any]) -> None:
    pair.south.cluster.apply(
        {
            "apiVersion": "talkoo.dev/v1alpha1",
            "kind": "Proposal",
            "metadata": {"name": "leave", "namespace": pair.south.namespace},
            "spec": {"action": "LeaveFederation"},
        }
    )

    eventually(lambda: member(pair.north, "south").get("state") == "Left", "north sees that south has left")
    eventually(lambda: not any("south" in each for each in trusted(pair.north)), "north's parts trust it no more")
    before = federation(pair.north)["height"]
    eventually(lambda: federation(pair.north)["height"] > before, "north goes on")


def test_cert_manager_renews_a_service_s_certificate(pair: Pair, eventually: Callable[..., Any]) -> None:
    """As `cmctl renew` asks for it."""
    cluster, namespace = pair.south.cluster, pair.south.namespace

    def certificates() -> dict[str, dict[str, Any]]:
        listed = cluster.get("-n", namespace, "certificates.cert-manager.io")["items"]
        return {each["metadata"]["name"]: each["status"] for each in listed}

    def secret() -> str:
        return str(cluster.get("-n", namespace, "secret", "talkoo-gateway-tls")["data"]["tls.crt"])

    assert {"talkoo-authority", "talkoo-gateway", "talkoo-ledger", "talkoo-operator"} <= certificates().keys()
    for name, status in certificates().items():
        assert [c["status"] for c in status["conditions"] if c["type"] == "Ready"] == ["True"], name
    before = secret()
    wish = {"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "renewed by a test"}
    ready = certificates()["talkoo-gateway"]["conditions"]
    cluster.kubectl(
        *("-n", namespace, "patch", "certificate.cert-manager.io", "talkoo-gateway", "--subresource=status"),
        *("--type=merge", "-p", json.dumps({"status": {"conditions": [*ready, wish]}})),
    )
    eventually(lambda: certificates()["talkoo-gateway"].get("revision") == 2, "the certificate is issued again")
    assert secret() != before


def test_nobody_calls_what_is_not_for_them(pair: Pair) -> None:
    """Neither pods of the release nor a stranger in another namespace."""
    namespace, release = pair.north.namespace, pair.north.release
    image = pair.north.values["images"]["control"]
    pair.north.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "stranger", "namespace": "default"},
            "spec": {
                "containers": [
                    {
                        "name": "stranger",
                        "image": f"{image['repository']}:{image['tag']}",
                        "imagePullPolicy": "Never",
                        "command": ["sleep", "infinity"],
                    }
                ]
            },
        }
    )
    pair.north.cluster.kubectl("wait", "pod/stranger", "--for=condition=Ready", "--timeout=60s")

    def reached(caller: str, place: str = namespace) -> set[str]:
        others = {f"{release}-{part}": port for part, port in SERVED if not caller.endswith(part)}
        script = ["python3", "-c", CALLS, namespace, json.dumps(others)]
        said = pair.north.cluster.kubectl("-n", place, "exec", caller, "--", *script)
        return {name.removeprefix(f"{release}-") for name in said.split()}

    assert reached("statefulset/talkoo-etcd") == reached("statefulset/talkoo-storage") == set()
    assert reached("deployment/talkoo-operator") == {"gateway"}
    assert reached("deployment/talkoo-scheduler") == {"ledger", "etcd"}
    assert reached("statefulset/talkoo-validator") == {"ledger", "storage"}
    assert reached("pod/stranger", "default") == {"ledger", "scheduler", "gateway"}, "what is exposed"


def test_an_invitation_holds_no_key(pair: Pair, tmp_path: Path) -> None:
    text = invite(pair.north)
    secrets = pair.north.cluster.get("-n", pair.north.namespace, "secrets")["items"]
    values = {value for each in secrets if each["type"] == "Opaque" for value in each["data"].values()}
    assert values
    assert "PRIVATE KEY" not in text
    assert not [value for value in values if value in text]
