"""What the chart makes of a cluster that others reach, and of one that joins by an invitation and only dials out."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_ledger.settings import LedgerSettings
from talkoo_operator.founding import genesis_of, make_card
from talkoo_operator.identity import IdentitySettings, NewAccount
from talkoo_operator.invitation import (
    Invitation,
    application_manifest,
    invitation_text,
    read_application,
    read_invitation,
    signed_application,
)
from talkoo_operator.join import JoinSettings
from talkoo_operator.settings import OperatorSettings

from talkoo.federation.beginning import ORGANIZATION_KEYS
from talkoo_core.errors import Failed, InvalidInput
from talkoo_core.signing import PrivateKey
from talkoo_runtime.keys import address_of, new_key
from talkoo_runtime.pki import create_authority, der_of, read_authority
from talkoo_runtime.settings import load_settings
from talkoo_runtime.transactions import sign_transaction
from talkoo_sim.cluster.chart import Object, containers, pod_templates, render, template

pytestmark = pytest.mark.usefixtures("helm")

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
REACHABLE: dict[str, Any] = {
    "exposure": {
        "type": "NodePort",
        "ledger": {"endpoint": "203.0.113.5:30443", "nodePort": 30443},
        "scheduler": {"endpoint": "scheduler.north.example:30444", "nodePort": 30444},
        "gateway": {"endpoint": "[2001:db8::5]:30445", "nodePort": 30445},
    },
    "agents": {"exposed": True, "hostPort": 7999},
}


def keys() -> dict[str, PrivateKey]:
    return {name: new_key() for name in ORGANIZATION_KEYS}


def invitation(**changes: Any) -> Invitation:
    authority = create_authority("north", NOW)
    card = make_card(authority, keys(), [], stake="1 TLK", balance="1 TLK", service_balance="1 TLK", time_ns=1)
    values = {
        "federation": "talkoo",
        "organization": "north",
        "ledger": "203.0.113.5:30443",
        "scheduler": "scheduler.north.example:30444",
        "gateway": "gateway.north.example:30445",
        "genesis": json.dumps(genesis_of("talkoo", [card])),
        "trust": authority.certificate_pem.decode(),
        "agent_port": 7999,
    }
    return Invitation(**(values | changes))


def joining(**changes: Any) -> dict[str, Any]:
    return {
        "organization": "south",
        "federation": {"invitation": invitation_text(invitation(**changes))},
        "ledger": {"outboundOnly": True},
        "agents": {"outboundOnly": True},
    }


def settings_file(objects: list[Object], name: str, file: str = "settings.toml") -> str:
    (found,) = (o["data"] for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == f"talkoo-{name}")
    return str(found[file])


def loaded(kind: Any, objects: list[Object], name: str, folder: Path, file: str = "settings.toml") -> Any:
    path = folder / f"{name}-{file}"
    path.write_text(settings_file(objects, name, file))
    given = {"TALKOO_NODE": "a", "TALKOO_POD_IP": "10.0.0.1", "TALKOO_HOST_IP": "192.0.2.1", "TALKOO_NAME": "a"}
    return load_settings(kind, path, given)


def policy(objects: list[Object], name: str) -> Object:
    (found,) = (o for o in objects if o["kind"] == "NetworkPolicy" and o["metadata"]["name"] == f"talkoo-{name}")
    return dict(found["spec"])


def anybody(spec: Object, way: str) -> set[int]:
    """Ports that are open from, or to, everywhere."""
    peers = {"ingress": "from", "egress": "to"}[way]
    return {port["port"] for rule in spec.get(way, ()) if peers not in rule for port in rule["ports"]}


def test_what_is_exposed_has_a_service_a_name_and_an_open_port(tmp_path: Path) -> None:
    objects = render(REACHABLE)
    exposed = {
        o["metadata"]["name"]: (o["spec"]["type"], [(p["targetPort"], p["nodePort"]) for p in o["spec"]["ports"]])
        for o in objects
        if o["kind"] == "Service" and o["metadata"]["name"].endswith("-exposed")
    }
    assert exposed == {
        "talkoo-ledger-exposed": ("NodePort", [("grpc", 30443)]),
        "talkoo-scheduler-exposed": ("NodePort", [("grpc", 30444)]),
        "talkoo-gateway-exposed": ("NodePort", [("grpc", 30445)]),
    }
    identity = loaded(IdentitySettings, objects, "identity", tmp_path)
    assert {each.service: each.endpoint for each in identity.exposed} == {
        service: REACHABLE["exposure"][service]["endpoint"] for service in ("ledger", "scheduler", "gateway")
    }
    assert identity.agent_port == 7999
    assert loaded(LedgerSettings, objects, "ledger", tmp_path).advertise == "203.0.113.5:30443"
    assert all(
        7443 in anybody(policy(objects, part), "ingress") for part in ("ledger", "scheduler", "gateway", "agent")
    )
    assert not [part for part in ("ledger", "scheduler", "agent") if anybody(policy(render(), part), "ingress")]
    members = {"networkPolicies": {"memberCidrs": ["198.51.100.0/24"]}}
    assert not anybody(policy(render(REACHABLE | members), "scheduler"), "ingress")
    assert "198.51.100.0/24" in json.dumps(policy(render(REACHABLE | members), "scheduler")["ingress"])


def test_exposed_agents_are_dialled_at_their_nodes(tmp_path: Path) -> None:
    objects = render(REACHABLE)
    (pod,) = (pod for name, pod in pod_templates(objects) if name == "DaemonSet/talkoo-agent")
    ports = [port for each in containers(pod) for port in each.get("ports", ())]
    assert ports == [{"name": "grpc", "containerPort": 7443, "hostPort": 7999}]
    join = loaded(JoinSettings, objects, "agent", tmp_path, "join.toml")
    assert (join.host_ip, join.host_port) == ("192.0.2.1", 7999)


def test_cert_manager_names_what_is_exposed_as_our_own_certificates_do() -> None:
    objects = render(REACHABLE | {"certificates": {"issuer": "cert-manager"}})
    made = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Certificate"}
    assert made["talkoo-ledger"]["ipAddresses"] == ["127.0.0.1", "203.0.113.5"]
    assert "scheduler.north.example" in made["talkoo-scheduler"]["dnsNames"]
    assert made["talkoo-gateway"]["ipAddresses"] == ["127.0.0.1", "2001:db8::5"]
    assert made["talkoo-validator"]["ipAddresses"] == ["127.0.0.1"]


def test_who_joins_begins_where_the_invitation_says(tmp_path: Path) -> None:
    values = joining()
    objects = render(values)
    ledger = loaded(LedgerSettings, objects, "ledger", tmp_path)
    assert [(peer.organization, peer.endpoint) for peer in ledger.peers] == [("north", "203.0.113.5:30443")]
    assert ledger.outbound_only
    assert 'share_with = ["scheduler.north.example:30444"]' in settings_file(objects, "scheduler")
    for name, file in (("validator", "settings.toml"), ("gateway", "settings.toml"), ("agent", "agent.toml")):
        assert 'blobs = "gateway://gateway.north.example:30445"' in settings_file(objects, name, file)
    assert "outbound_only = true" in settings_file(objects, "agent", "agent.toml")
    assert settings_file(objects, "identity", "invitation.json") == values["federation"]["invitation"]
    assert loaded(IdentitySettings, objects, "identity", tmp_path).invitation == "/etc/talkoo/settings/invitation.json"
    assert "talkoo-storage" not in {o["metadata"]["name"] for o in objects}
    assert "AWS_" not in json.dumps(objects)
    called = {
        part: anybody(policy(objects, part), "egress") for part in ("ledger", "scheduler", "gateway", "validator")
    }
    assert called == {"ledger": {30443}, "scheduler": {30444}, "gateway": {30445}, "validator": {30445}}
    assert {30445, 7999} <= anybody(policy(objects, "agent"), "egress")


def test_who_joins_bonds_and_pays_its_namespaces_itself(tmp_path: Path) -> None:
    values = joining()
    values["federation"] |= {"stake": "700 TLK", "accounts": [{"namespace": "vision", "balance": "20 TLK"}]}
    operator = loaded(OperatorSettings, render(values), "operator", tmp_path)
    assert (operator.stake, operator.accounts) == ("700 TLK", (NewAccount("vision", "20 TLK"),))
    assert loaded(OperatorSettings, render(), "operator", tmp_path).stake == ""


def test_other_peers_and_schedulers_may_be_named() -> None:
    values = joining()
    values["ledger"] = {"peers": [{"organization": "east", "endpoint": "east.example:7443"}]}
    values["scheduler"] = {"shareWith": ["east.example:7444"]}
    objects = render(values)
    assert settings_file(objects, "ledger").count("[[peers]]") == 2
    assert 'share_with = ["east.example:7444"]' in settings_file(objects, "scheduler")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"federation": {"invitation": "{}"}}, "federation.invitation"),
        ({"federation": {"invitation": "no json"}}, "federation.invitation"),
        (joining(federation="village"), "federation.name: the invitation is into village"),
        (joining() | {"organization": "north"}, "organization: the invitation is by north"),
        ({"exposure": {"ledger": {"endpoint": "north.example"}}}, "/exposure/ledger/endpoint"),
        ({"agents": {"exposed": True, "outboundOnly": True}}, "/agents/exposed"),
        ({"ledger": {"engine": "cometbft", "outboundOnly": True}}, "/ledger/outboundOnly"),
        ({"blobs": {"url": "gateway://north.example:30445", "secretName": "s3"}}, "/blobs/secretName"),
        ({"blobs": {"url": "gateway://north.example"}}, "/blobs/url"),
    ],
)
def test_what_cannot_work_is_refused(values: Mapping[str, Any], field: str) -> None:
    with pytest.raises(Failed, match=field):
        template(values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ledger": "north.example"}, "ledger is no host:port"),
        ({"organization": "east"}, "no authority of east"),
        ({"genesis": "{}"}, "chain_id"),
        ({"trust": "none"}, "is no invitation"),
    ],
)
def test_an_invitation_that_cannot_be_followed_is_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        read_invitation(invitation_text(invitation(**changes)), "a file")
    assert caught.value.code == "bad_invitation"


def test_an_application_is_made_without_a_connection() -> None:
    invited, authority, own = invitation(), create_authority("south", NOW), keys()
    assert read_invitation(invitation_text(invited), "a file") == invited
    signed = signed_application(invited, authority, own, 0)
    assert signed_application(invited, authority, own, 0) == signed
    proposal = yaml.safe_load(application_manifest(authority, address_of(own["owner"]), signed, "1100 TLK"))
    assert base64.b64decode(proposal["spec"].pop("application")) == signed
    assert proposal["spec"] == {"action": "AdmitMember", "organization": "south", "grant": "1100 TLK"}
    body = tx_pb2.TxBody.FromString(tx_pb2.SignedTx.FromString(signed).body)
    assert (body.chain_id, body.nonce, body.fee_utlk) == ("talkoo-1", 0, 100)
    assert read_authority(body.apply_membership.authority, "south") == authority.certificate_pem
    assert body.apply_membership.scheduler == address_of(own["scheduler"])
    read = read_application(base64.b64encode(signed).decode(), "south")
    assert (read.signed, read.owner, read.chain_id, read.nonce) == (signed, address_of(own["owner"]), "talkoo-1", 0)


def test_what_is_no_application_of_the_newcomer_is_refused_before_anything_is_paid() -> None:
    invited, authority, own = invitation(), create_authority("south", NOW), keys()
    signed = signed_application(invited, authority, own, 0)
    forged = tx_pb2.SignedTx.FromString(signed)
    forged.body = forged.body.replace(b"talkoo-1", b"talkoo-2")
    thief = new_key()
    body = tx_pb2.TxBody.FromString(tx_pb2.SignedTx.FromString(signed).body)
    stolen = sign_transaction(thief, "talkoo-1", 0, 100, body.apply_membership)
    body.apply_membership.authority = b""
    nobody = sign_transaction(own["owner"], "talkoo-1", 0, 100, body.apply_membership)
    body.apply_membership.authority = der_of(create_authority("north", NOW).certificate_pem)
    others = sign_transaction(own["owner"], "talkoo-1", 0, 100, body.apply_membership)
    transfer = sign_transaction(own["owner"], "talkoo-1", 0, 100, tx_pb2.Transfer(to="x", amount_utlk=1))
    refused = {
        "its signature is wrong": forged.SerializeToString(),
        "another key than the owner's": stolen,
        "names no authority": nobody,
        "the authority is of north": others,
        "it is of ''": transfer,
        "no application of south": b"\xff\xff",
    }
    for words, transaction in refused.items():
        with pytest.raises(InvalidInput, match=words):
            read_application(base64.b64encode(transaction).decode(), "south")
    with pytest.raises(InvalidInput, match="it is of 'south'"):
        read_application(base64.b64encode(signed).decode(), "east")


def test_the_operator_may_change_whom_we_trust_and_no_other_configuration() -> None:
    may = [
        (rule["verbs"], rule.get("resourceNames"))
        for each in render()
        if each["kind"] in ("Role", "ClusterRole") and each["metadata"]["name"].endswith("-operator")
        for rule in each["rules"]
        if "configmaps" in rule["resources"] and rule["verbs"] != ["get"]
    ]
    assert may == [(["patch"], ["talkoo-federation"])]
