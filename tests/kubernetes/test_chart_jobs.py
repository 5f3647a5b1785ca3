"""The release's own Jobs, run as processes with exactly the rights that the chart gives them, on a real API server."""

from __future__ import annotations

import base64
import datetime
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from talkoo_ledger.genesis import parse_genesis
from talkoo_operator.founding import card_text, make_card
from talkoo_operator.plan import FINALIZER

from talkoo.federation.beginning import ORGANIZATION_KEYS
from talkoo_core.signing import PrivateKey
from talkoo_runtime.pki import Authority, create_authority, names_hosts
from talkoo_sim.cluster.chart import Object, render
from talkoo_sim.cluster.cluster import Cluster

pytestmark = pytest.mark.usefixtures("helm")

FOREIGN = "example.com/of-somebody-else"
RIGHTS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
_SHA256 = hashes.SHA256()
EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "digits" / "task.yaml"


class Home:
    """A namespace with what one Job of the chart needs, and the Job's process."""

    def __init__(self, cluster: Cluster, folder: Path, namespace: str) -> None:
        self.cluster = cluster
        self.folder = folder
        self.namespace = namespace

    def run(self, component: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """As its pod would: the chart's settings, and a token of the chart's service account."""
        objects = render(values, namespace=self.namespace)
        wanted = [each for each in objects if _component(each) == component and each["kind"] in RIGHTS]
        self.cluster.apply(*(self.placed(each) for each in wanted))
        (config,) = (each for each in objects if each["kind"] == "ConfigMap" and _component(each) == component)
        settings = self.folder / f"{component}.toml"
        for file, text in config["data"].items():
            (self.folder / file).write_text(text)
        mounted = config["data"]["settings.toml"].replace("/etc/talkoo/settings/", f"{self.folder}/")
        settings.write_text(mounted)
        path = self.folder / "account.kubeconfig"
        kubeconfig = self.cluster.account_kubeconfig(path, self.namespace, f"talkoo-{component}")
        return subprocess.run(
            [sys.executable, "-m", f"talkoo_operator.{component}", "--settings", str(settings)],
            env=os.environ | {"KUBECONFIG": str(kubeconfig)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def placed(self, each: Object) -> Object:
        if each["kind"].startswith("Cluster") or "namespace" in each["metadata"]:
            return each
        return each | {"metadata": each["metadata"] | {"namespace": self.namespace}}

    def get(self, *arguments: str) -> Any:
        return self.cluster.get("-n", self.namespace, *arguments)

    def names(self, kind: str) -> set[str]:
        return {each["metadata"]["name"] for each in self.get(kind)["items"]}

    def secret(self, name: str) -> dict[str, bytes]:
        return {key: base64.b64decode(value) for key, value in self.get("secret", name)["data"].items()}

    def write_authority(self, authority: Authority) -> None:
        """As cert-manager leaves it."""
        data = {"tls.crt": authority.certificate_pem, "tls.key": authority.key_pem, "ca.crt": authority.certificate_pem}
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        metadata = {"name": "talkoo-authority", "namespace": self.namespace}
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/tls", "data": encoded}
        )

    def trusted(self) -> set[bytes]:
        bundle = self.get("configmap", "talkoo-federation")["data"]["trust.pem"].encode()
        return {each.fingerprint(_SHA256) for each in x509.load_pem_x509_certificates(bundle)}


def _component(each: Object) -> str:
    return str(each["metadata"].get("labels", {}).get("app.kubernetes.io/component", ""))


def _fingerprint(authority: Authority) -> bytes:
    return x509.load_pem_x509_certificate(authority.certificate_pem).fingerprint(_SHA256)


@pytest.fixture
def new_home(control_plane: Cluster, tmp_path: Path) -> Iterator[Callable[[], Home]]:
    control_plane.apply(*(each for each in render() if each["kind"] == "CustomResourceDefinition"))
    control_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    made: list[str] = []

    def make() -> Home:
        namespace = f"jobs-{secrets.token_hex(3)}"
        made.append(namespace)
        control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        (tmp_path / namespace).mkdir()
        return Home(control_plane, tmp_path / namespace, namespace)

    yield make
    control_plane.kubectl("delete", "namespace", *made, "--ignore-not-found", "--timeout=60s", timeout_s=70.0)
    roles = [f"{namespace}-talkoo-{name}" for namespace in made for name in ("cleanup", "identity")]
    for kind in ("clusterrole", "clusterrolebinding"):
        control_plane.kubectl("delete", kind, *roles, "--ignore-not-found")


@pytest.fixture
def home(new_home: Callable[[], Home]) -> Home:
    return new_home()


def task(home: Home, name: str, *finalizers: str) -> Object:
    made: Object = yaml.safe_load(EXAMPLE.read_text())
    made["metadata"] = {"name": name, "namespace": home.namespace, "finalizers": list(finalizers)}
    return made


def versions(home: Home, kind: str) -> dict[str, str]:
    return {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in home.get(kind)["items"]}


def finalizers(home: Home, name: str) -> list[str]:
    return list(home.get("trainingtask", name)["metadata"].get("finalizers", ()))


def test_before_an_uninstallation_the_operator_stops_and_nothing_keeps_a_namespace(
    home: Home, eventually: Callable[..., Any]
) -> None:
    objects = render(namespace=home.namespace)
    operator = [o for o in objects if _component(o) == "operator" and o["kind"] in ("Deployment", "ServiceAccount")]
    leases = [
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": home.namespace},
            "spec": {},
        }
        for name in ("talkoo-operator", "gpunode-one", "of-somebody-else")
    ]
    node = {"apiVersion": "talkoo.dev/v1alpha1", "kind": "GPUNode", "metadata": {"name": home.namespace}}
    tasks = [task(home, "one", FINALIZER), task(home, "two", FOREIGN, FINALIZER), task(home, "three")]
    home.cluster.apply(*(home.placed(each) for each in operator), *leases, node, *tasks)
    assert home.run("identity").returncode == 0
    eventually(lambda: len(home.names("pods")) == 2, "the operator's pods are there")

    done = home.run("cleanup")

    assert done.returncode == 0, done.stderr
    assert f"TrainingTask {home.namespace}/one is released" in done.stdout
    assert (finalizers(home, "one"), finalizers(home, "two"), finalizers(home, "three")) == ([], [FOREIGN], [])
    assert home.get("deployment", "talkoo-operator")["spec"]["replicas"] == 0
    assert not home.names("pods")
    assert home.names("lease") == {"of-somebody-else"}
    assert home.namespace not in home.names("gpunode")
    assert {"talkoo-keys", "talkoo-authority"} <= home.names("secret"), "keys are money: they stay"
    home.cluster.kubectl(
        "-n", home.namespace, "patch", "trainingtask", "two", "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
    )
    home.cluster.kubectl("delete", "namespace", home.namespace, "--timeout=60s", timeout_s=70.0)


def test_a_second_cleanup_finds_nothing(home: Home) -> None:
    for _ in range(2):
        done = home.run("cleanup", {"agents": {"enabled": False}})
        assert (done.returncode, done.stdout) == (0, "there was nothing to take away\n"), done.stderr


def test_secrets_go_only_when_it_is_said_and_only_our_own(home: Home) -> None:
    assert home.run("identity").returncode == 0
    others = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "others", "namespace": home.namespace}}
    home.cluster.apply(others)
    done = home.run("cleanup", {"cleanup": {"deleteSecrets": True}, "agents": {"enabled": False}})
    assert done.returncode == 0, done.stderr
    assert "Secret talkoo-keys is deleted" in done.stdout
    assert home.names("secret") == {"others"}
    assert "talkoo-federation" not in home.names("configmap")


def test_identity_makes_what_pods_mount_and_nothing_twice(home: Home) -> None:
    first = home.run("identity")
    assert first.returncode == 0, first.stderr
    mounted = {
        volume["secret"]["secretName"]
        for each in render(namespace=home.namespace)
        if each["kind"] in ("Deployment", "StatefulSet", "Pod")
        for volume in (each["spec"]["template"]["spec"] if each["kind"] != "Pod" else each["spec"])["volumes"]
        if "secret" in volume
    }
    assert mounted < home.names("secret")
    assert len(home.secret("talkoo-gateway-token")["rest.token"]) >= 32
    before = versions(home, "secret")
    again = home.run("identity")
    assert again.stdout == "everything is there, and no certificate is near its end\n"
    assert before == versions(home, "secret")


def test_certificates_that_cert_manager_issues_are_left_to_it(home: Home) -> None:
    values = {"certificates": {"issuer": "cert-manager"}}
    now = datetime.datetime.now(datetime.UTC)
    ours, other = create_authority("north", now), create_authority("east", now)
    home.write_authority(ours)

    done = home.run("identity", values)

    assert done.returncode == 0, done.stderr
    assert not {name for name in home.names("secret") if name.endswith("-tls")}
    assert home.secret("talkoo-authority")["tls.crt"] == ours.certificate_pem
    assert home.trusted() == {_fingerprint(ours)}
    both = json.dumps({"data": {"trust.pem": (ours.certificate_pem + other.certificate_pem).decode()}})
    home.cluster.kubectl("-n", home.namespace, "patch", "configmap", "talkoo-federation", "--type=merge", "-p", both)
    renewed = create_authority("north", now)
    home.write_authority(renewed)
    assert "trusts the authority of north as it is now" in home.run("identity", values).stdout
    assert home.trusted() == {_fingerprint(renewed), _fingerprint(other)}


def test_an_authority_of_another_organization_is_refused(home: Home) -> None:
    home.write_authority(create_authority("east", datetime.datetime.now(datetime.UTC)))
    done = home.run("identity", {"certificates": {"issuer": "cert-manager"}})
    assert done.returncode == 2
    assert (
        "the certificate is of 'east'; the authority of north must have the subject organization 'north'" in done.stderr
    )


def test_founders_that_share_no_secret_make_the_same_genesis(new_home: Callable[[], Home]) -> None:
    homes = {name: new_home() for name in ("north", "east", "south")}
    founders = [{"organization": n, "namespace": h.namespace, "release": "talkoo"} for n, h in homes.items()]

    def found(name: str) -> subprocess.CompletedProcess[str]:
        return homes[name].run("identity", {"organization": name, "federation": {"founders": founders}})

    with ThreadPoolExecutor(len(homes)) as pool:
        done = [*pool.map(found, homes)]
    assert [each.returncode for each in done] == [0, 0, 0], [each.stderr for each in done]
    written = {json.dumps(home.get("configmap", "talkoo-federation")["data"]) for home in homes.values()}
    assert len(written) == 1
    genesis = parse_genesis(json.loads(written.pop())["genesis.json"].encode())
    assert [organization.name for organization in genesis.organizations] == ["east", "north", "south"]
    assert len(homes["north"].trusted()) == 3
    keys = [home.secret("talkoo-keys")["owner.key"] for home in homes.values()]
    assert len(set(keys)) == 3
    for home in homes.values():
        card = home.get("configmap", "talkoo-card")["data"]["card.json"]
        assert "PRIVATE" not in card
        assert not [key for key in keys if json.loads(key)["seed"] in card]


def test_an_invitation_goes_out_and_an_application_comes_back(new_home: Callable[[], Home]) -> None:
    north, south = new_home(), new_home()
    ends = {"ledger": "203.0.113.5:30443", "scheduler": "203.0.113.5:30444", "gateway": "north.example:30445"}
    assert north.run("identity").returncode == 0
    before = north.secret("talkoo-ledger-tls"), north.secret("talkoo-validator-tls")
    exposed = {"exposure": {service: {"endpoint": endpoint} for service, endpoint in ends.items()}}
    done = north.run("identity", exposed)
    assert "ConfigMap talkoo-invitation: hand its invitation.json to whom you invite" in done.stdout, done.stderr
    assert north.secret("talkoo-validator-tls") == before[1], "what is not exposed keeps its certificate"
    assert names_hosts(north.secret("talkoo-ledger-tls")["certificate.pem"], ["203.0.113.5", "talkoo-ledger"])
    assert names_hosts(north.secret("talkoo-gateway-tls")["certificate.pem"], ["north.example"])
    assert north.run("identity", exposed).stdout.startswith("everything is there")
    text = north.get("configmap", "talkoo-invitation")["data"]["invitation.json"]

    values = {"organization": "south", "federation": {"invitation": text}}
    done = south.run("identity", values)
    assert done.returncode == 0, done.stderr
    assert "ConfigMap talkoo-application: hand its application.yaml to north" in done.stdout
    genesis, theirs = (home.get("configmap", "talkoo-federation")["data"]["genesis.json"] for home in (north, south))
    assert genesis == theirs, "byte for byte"
    assert len(south.trusted()) == 2
    assert south.trusted() > north.trusted()
    proposal = yaml.safe_load(south.get("configmap", "talkoo-application")["data"]["application.yaml"])
    north.cluster.kubectl("-n", north.namespace, "create", "--dry-run=server", "-f", "-", stdin=json.dumps(proposal))
    secret = json.loads(south.secret("talkoo-keys")["owner.key"])["seed"]
    assert secret not in json.dumps(proposal)
    assert south.run("identity", values).stdout.startswith("everything is there")
    again = south.run("identity", values | {"federation": {"invitation": text, "applicationNonce": 3}})
    assert "talkoo-application" in again.stdout
    other = json.dumps(json.loads(text) | {"genesis": genesis.replace("talkoo-1", "talkoo-2")})
    refused = south.run("identity", values | {"federation": {"invitation": other}})
    assert "has the genesis of another chain" in refused.stderr


def test_a_card_of_another_organization_is_refused(new_home: Callable[[], Home]) -> None:
    north, east = new_home(), new_home()
    founders = [
        {"organization": "north", "namespace": north.namespace, "release": "talkoo"},
        {"organization": "east", "namespace": east.namespace, "release": "talkoo"},
    ]
    values = {"federation": {"founders": founders}}
    card = card_of("west")
    rights = [o for o in render(values | {"organization": "east"}, namespace=east.namespace) if o["kind"] in RIGHTS]
    east.cluster.apply(*(east.placed(each) for each in rights if _component(each) == "identity"))
    metadata = {"name": "talkoo-card", "namespace": east.namespace}
    east.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"card.json": card}})
    done = north.run("identity", values)
    assert done.returncode == 2
    assert "is the card of 'west'" in done.stderr
    assert "correct federation.founders" in done.stderr


def card_of(organization: str) -> str:
    """A card in good order."""
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: PrivateKey.from_seed(secrets.token_bytes(32)) for name in ORGANIZATION_KEYS}
    amounts = {"stake": "1000 TLK", "balance": "9 TLK", "service_balance": "1 TLK"}
    return card_text(make_card(create_authority(organization, now), keys, [], time_ns=1, **amounts))
