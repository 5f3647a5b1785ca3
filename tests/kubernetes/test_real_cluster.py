"""The whole loop in a real cluster: helm installs Talkoo, kubectl applies a task, and the model is trained and paid."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from talkoo.version import __version__
from talkoo_core.amounts import parse_tlk
from talkoo_core.errors import Failed
from talkoo_sim.cluster.access import client_of
from talkoo_sim.cluster.binaries import PROMETHEUS_VERSION, kubectl
from talkoo_sim.cluster.commands import run
from talkoo_sim.cluster.deployment import CHART, Deployment
from talkoo_sim.cluster.images import import_image
from talkoo_sim.cluster.own_images import COMET, ROOT, image_archive, image_name

EXAMPLE = ROOT / "examples" / "digits"
TASK_S = 900.0
ENDED = ("Succeeded", "Failed", "Cancelled")
BLOCKS_TO_THE_HALT = 30
"""More than are decided until the ledger has been told."""
PODS = {"ledger": 1, "scheduler": 1, "validator": 1, "gateway": 1, "operator": 2, "agent": 2}
BUDGET_UTLK = parse_tlk("80 TLK")


def condition(task: dict[str, Any], kind: str) -> dict[str, Any]:
    found = [each for each in task["status"].get("conditions", ()) if each["type"] == kind]
    return found[0] if found else {"status": "", "reason": "", "message": ""}


@pytest.mark.timeout(1500)
def test_a_task_that_kubectl_applies_ends_in_a_trained_verified_paid_model(
    deployed: Deployment, eventually: Callable[..., Any]
) -> None:
    cluster = deployed.cluster
    nodes = eventually(
        lambda: [node for node in cluster.get("gpunodes")["items"] if condition(node, "Joined")["status"] == "True"],
        "nodes have joined",
    )
    assert {node["metadata"]["name"] for node in nodes} == set(cluster.layout.node_names())

    cluster.kubectl("apply", "--server-side", "-k", str(EXAMPLE))
    phases: list[str] = []

    def ended() -> Any:
        task = cluster.get("trainingtask", "digits")
        phase = task.get("status", {}).get("phase", "")
        if phase and (not phases or phases[-1] != phase):
            phases.append(phase)
        assert task.get("status", {}).get("reason") != "InvalidSpec", task["status"]
        return task if phase in ENDED else None

    task = eventually(ended, "the task ends", TASK_S)
    status = task["status"]
    assert status["phase"] == "Succeeded", status
    assert "Running" in phases
    assert condition(task, "Succeeded")["status"] == condition(task, "Verified")["status"] == "True", status
    assert set(status["workers"]) == set(cluster.layout.node_names())
    spent = parse_tlk(status["tokens"]["spent"])
    assert 0 < spent <= BUDGET_UTLK
    assert parse_tlk(status["tokens"]["escrowed"]) == 0

    model = eventually(lambda: cluster.get("modelversions")["items"], "the model is registered")[0]["spec"]
    assert model["version"] == status["modelVersion"] == "digits@1"
    assert model["taskId"] == status["taskId"]
    assert model["heldout"]["correct"] / model["heldout"]["total"] > 0.9
    events = cluster.get("events")["items"]
    assert "Submitted" in {e["reason"] for e in events if e["involvedObject"]["name"] == "digits"}


@pytest.mark.timeout(300)
def test_a_request_to_the_trained_model_is_answered_and_paid(deployed: Deployment, tmp_path: Path) -> None:
    pictures = json.loads((EXAMPLE / "three.json").read_text())
    with client_of(deployed, "default", tmp_path) as client:
        before = client.account().balance_utlk
        answer = client.request("digits", pictures, most="1 TLK")
        assert len(answer.outputs) == len(pictures)
        assert client.account().balance_utlk < before


@pytest.mark.timeout(300)
def test_helm_test_passes(deployed: Deployment) -> None:
    said = deployed.helm("test", deployed.release, "--logs", timeout_s=240.0)
    assert "the ledger grows" in said


@pytest.mark.timeout(600)
def test_the_gateway_grows_by_what_the_metrics_server_measures(
    deployed: Deployment, eventually: Callable[..., Any], program: Callable[[str], Path]
) -> None:
    """One percent of what it asks for is less than it takes while nobody calls."""
    cluster, gateway = deployed.cluster, f"{deployed.release}-gateway"
    program("metrics-server")
    cluster.start_metrics_server()
    scaling = {"enabled": True, "minReplicas": 1, "maxReplicas": 2, "targetCPUUtilizationPercentage": 1}
    values = ("--set-json", f"gateway.autoscaling={json.dumps(scaling)}")
    deployed.install(*values)

    def grown() -> bool:
        scaler = cluster.get("-n", deployed.namespace, "hpa", gateway)
        wanted = scaler["status"].get("desiredReplicas")
        ready = cluster.get("-n", deployed.namespace, "deployment", gateway)["status"].get("readyReplicas")
        return condition(scaler, "ScalingActive")["status"] == "True" and wanted == ready == 2

    eventually(grown, "there are two gateways")
    deployed.install(*values, "--set", "operator.logLevel=debug")
    deployed.wait_ready()
    assert grown(), "an upgrade leaves the number to the autoscaler"
    measured = cluster.kubectl("-n", deployed.namespace, "top", "pods", "--no-headers")
    assert measured.count(f"{gateway}-") == 2
    deployed.install()
    deployed.wait_ready()


@pytest.mark.timeout(600)
def test_a_prometheus_that_the_operator_configures_hears_every_part_and_judges_every_alert(
    deployed: Deployment, eventually: Callable[..., Any], program: Callable[[str], Path]
) -> None:
    cluster = deployed.cluster
    program("prometheus-operator")
    program("prometheus")
    cluster.start_prometheus_operator()
    deployed.install(
        "--set",
        "monitoring.serviceMonitor.enabled=true,monitoring.serviceMonitor.interval=5s,monitoring.rules.enabled=true",
    )
    cluster.apply(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "Prometheus",
            "metadata": {"name": "all", "namespace": deployed.namespace},
            "spec": {
                "replicas": 0,  # it runs beside the cluster
                "version": f"v{PROMETHEUS_VERSION}",
                "serviceMonitorSelector": {},
                "ruleSelector": {},
                "evaluationInterval": "5s",
            },
        }
    )
    made = ("secret/prometheus-all", "configmap/prometheus-all-rulefiles-0")
    eventually(lambda: cluster.kubectl("-n", deployed.namespace, "get", *made), "the operator has configured it")
    url = cluster.start_prometheus(deployed.namespace, "all")

    def told(about: str) -> Any:
        with urllib.request.urlopen(f"{url}/api/v1/{about}", timeout=10) as answer:
            return json.load(answer)["data"]

    def heard() -> dict[str, int] | None:
        targets = told("targets")["activeTargets"]
        up = Counter(target["labels"]["job"] for target in targets if target["health"] == "up")
        return dict(up) if len(targets) == up.total() > 0 else None

    def judged() -> list[str] | None:
        rules = [rule for group in told("rules")["groups"] for rule in group["rules"]]
        return [rule["name"] for rule in rules] if {rule["health"] for rule in rules} == {"ok"} else None

    parts = eventually(heard, "every target answers")
    assert parts == {f"talkoo-{part}": pods for part, pods in PODS.items()}
    assert len(eventually(judged, "every alert is judged")) == (CHART / "rules" / "alerts.yaml").read_text().count(
        "alert:"
    )
    cluster.kubectl("-n", deployed.namespace, "delete", "prometheus", "all")
    cluster.stop_part("prometheus")
    cluster.stop_part("prometheus-operator")
    deployed.install()


def test_an_image_says_what_is_in_it(deployed: Deployment) -> None:
    gateway = f"deployment/{deployed.release}-gateway"
    said = deployed.cluster.kubectl("-n", deployed.namespace, "exec", gateway, "--", "cat", "/opt/talkoo/sbom.cdx.json")
    parts = json.loads(said)
    versions = {each["name"]: each["version"] for each in parts["components"]}
    assert parts["bomFormat"] == "CycloneDX"
    assert versions["talkoo"] == __version__
    assert {"grpcio", "kopf", "cryptography"} <= versions.keys()
    assert "torch" not in versions


@pytest.mark.timeout(900)
def test_a_task_outlives_the_operator_and_an_agent_that_are_killed_under_it(
    deployed: Deployment, eventually: Callable[..., Any]
) -> None:
    """Forced deletion is SIGKILL. The task goes on from its last committed segment, and one escrow is spent, once."""
    cluster = deployed.cluster
    task = yaml.safe_load((EXAMPLE / "task.yaml").read_text())
    task["metadata"]["name"] = "again"
    task["spec"] |= {"seed": 11, "steps": 480, "budget": "200 TLK"}
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(task))

    def status() -> dict[str, Any]:
        found = dict(cluster.get("trainingtask", "again").get("status", {}))
        assert found.get("reason") not in ("InvalidSpec", "InsufficientFunds"), found
        return found

    eventually(lambda: status().get("segments", {}).get("committed", 0) >= 2, "two segments are committed")
    task_id = status()["taskId"]
    lease = cluster.get("-n", deployed.namespace, "lease", f"{deployed.release}-operator")
    leader = lease["spec"]["holderIdentity"]
    agents = cluster.get("-n", deployed.namespace, "pods", "-l", "app.kubernetes.io/component=agent")["items"]
    for pod in (leader, agents[0]["metadata"]["name"]):
        cluster.kubectl("-n", deployed.namespace, "delete", "pod", pod, "--force", "--grace-period=0")
    eventually(lambda: status().get("phase") in ("Succeeded", "Failed"), "the task ends", TASK_S)
    ended = status()
    assert ended["phase"] == "Succeeded", ended
    assert ended["taskId"] == task_id
    assert ended["segments"]["accepted"] == ended["segments"]["total"] == 16
    assert ended["attempt"] >= 1
    deployed.wait_ready()


@pytest.mark.timeout(900)
def test_an_upgrade_and_its_rollback_keep_the_chain(
    deployed: Deployment, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    with client_of(deployed, "default", tmp_path) as client:
        first = eventually(client.status, "the ledger answers")
        balance = client.account().balance_utlk
    deployed.install("--set", "ledger.emptyBlockIntervalMs=1500")
    deployed.wait_ready()
    with client_of(deployed, "default", tmp_path) as client:
        second = eventually(client.status, "the ledger answers")
        assert (second.chain_id, client.account().balance_utlk) == (first.chain_id, balance)
        assert second.height >= first.height
    deployed.helm("rollback", deployed.release, "--wait", timeout_s=300.0)
    deployed.wait_ready()
    with client_of(deployed, "default", tmp_path) as client:
        eventually(lambda: client.status().height > second.height, "the chain goes on")
        assert client.account().balance_utlk == balance


@pytest.mark.timeout(600)
def test_the_ledger_comes_back_from_a_backup_of_its_disk(
    deployed: Deployment, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    """Backup, loss of the whole disk, restoration: the same chain and balances, and new blocks behind them."""
    script, file = ROOT / "deploy" / "ledger-disk", tmp_path / "ledger.tar"
    environment = {
        **os.environ,
        "KUBECONFIG": str(deployed.cluster.layout.kubeconfig),
        "PATH": f"{kubectl().parent}:{os.environ['PATH']}",
    }

    def call(do: str) -> str:
        return run([script, do, file, deployed.namespace, deployed.release], environment=environment, timeout_s=400.0)

    assert str(file) in call("backup")
    deployed.wait_ready()
    with client_of(deployed, "default", tmp_path) as client:
        before = eventually(client.status, "the ledger answers")
        balance = client.account().balance_utlk
    with pytest.raises(Failed, match="is there already"):
        call("backup")
    claim = deployed.cluster.get("-n", deployed.namespace, "pvc", f"state-{deployed.release}-ledger-0")
    volume = deployed.cluster.get("pv", claim["spec"]["volumeName"])
    disk = Path(volume["spec"]["local"]["path"])
    assert len(list(disk.iterdir())) > 1
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "goes on" in call("restore")
    deployed.wait_ready()
    with client_of(deployed, "default", tmp_path) as client:
        eventually(lambda: client.status().height > 1, "the chain goes on")
        assert (client.status().chain_id, client.account().balance_utlk) == (before.chain_id, balance)


@pytest.mark.timeout(1200)
def test_the_chain_moves_to_cometbft_and_a_task_is_trained_and_paid_under_it(
    deployed: Deployment, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    """One value stops the ledger at a block, the next one lets CometBFT go on behind it."""
    cluster = deployed.cluster
    import_image(cluster.layout, image_archive(COMET))
    with client_of(deployed, "default", tmp_path) as client:
        before, balance = client.status(), client.account().balance_utlk
    halt = before.height + BLOCKS_TO_THE_HALT

    def height() -> int:
        with client_of(deployed, "default", tmp_path) as client:
            return client.status().height

    deployed.install("--set", f"ledger.haltHeight={halt}")
    eventually(lambda: height() == halt, "the ledger stands at its last block")
    repository, tag = image_name(COMET).split(":")
    image = f"images.comet.repository={repository},images.comet.tag={tag}"
    deployed.install("--set", f"ledger.engine=cometbft,{image}")
    deployed.wait_ready()
    with client_of(deployed, "default", tmp_path) as client:
        eventually(lambda: client.status().height > halt, "CometBFT decides")
        assert (client.status().chain_id, client.account().balance_utlk) == (before.chain_id, balance)

    task = yaml.safe_load((EXAMPLE / "task.yaml").read_text())
    task["metadata"]["name"] = "comet"
    task["spec"] |= {"steps": 30, "model": {"name": "comet"}}
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(task))

    def ended() -> dict[str, Any] | None:
        found = dict(cluster.get("trainingtask", "comet").get("status", {}))
        return found if found.get("phase") in ENDED else None

    status = eventually(ended, "the task ends", TASK_S)
    assert status["phase"] == "Succeeded", status
    assert parse_tlk(status["tokens"]["spent"]) > 0


@pytest.mark.timeout(600)
def test_nothing_is_left_after_uninstalling_but_keys_and_disks(
    deployed: Deployment, eventually: Callable[..., Any]
) -> None:
    """The last of this file. Keys are money and disks hold the chain: both stay until their owner deletes them."""
    cluster, namespace = deployed.cluster, deployed.namespace
    deployed.helm("uninstall", deployed.release, "--wait", timeout_s=300.0)
    kinds = "deployments,statefulsets,daemonsets,pods,jobs,cronjobs,services,serviceaccounts,roles,rolebindings"

    def left() -> list[str]:
        names = cluster.kubectl("-n", namespace, "get", kinds, "-o", "name").split()
        return [name for name in names if name != "serviceaccount/default"]

    eventually(lambda: not left(), f"all is gone: {left()}")
    cluster_wide = "clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings"
    assert "talkoo" not in cluster.kubectl("get", cluster_wide, "-o", "name")
    secrets = cluster.kubectl("-n", namespace, "get", "secrets", "-o", "name").split()
    assert f"secret/{deployed.release}-keys" in secrets
    assert not [name for name in secrets if "sh.helm.release" in name]
    cluster.kubectl("delete", "trainingtask", "--all", "--timeout=30s")
    cluster.kubectl("delete", "namespace", namespace, "--timeout=60s", timeout_s=90.0)
