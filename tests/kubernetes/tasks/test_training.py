"""`kubectl apply` of the example ends in a trained, verified model; and a program that breaks says where and how."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from talkoo_sim.cluster.own_images import ROOT
from talkoo_sim.operator_bed import Bed, LocalFederation, eventually

pytestmark = [pytest.mark.federation, pytest.mark.timeout(900)]
EXAMPLE = ROOT / "examples" / "digits"
SPACE = "training"
PATIENCE_S = 600.0
RETURN_LOSS = "return nn.functional.cross_entropy(model(pictures), labels)"
WORN_OUT = """CALLS.append(1)
    print("call", len(CALLS))
    if len(CALLS) > 40:
        raise RuntimeError("worn out")
    """


@pytest.fixture(scope="module")
def lending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Three machines that lend themselves."""
    made = LocalFederation(tmp_path_factory.mktemp("lending") / "home", {"alice": 500}, nodes=3)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def training(bed: Bed, lending: LocalFederation) -> Bed:
    """The only operator is one of a federation that trains."""
    bed.federation = lending
    bed.namespace(SPACE, "alice")
    operator = bed.operator("training", resync_s=10.0)
    eventually(lambda: operator.leads, "the operator leads")
    return bed


def holds(status: dict[str, Any], kind: str) -> str:
    return next((c["status"] for c in status.get("conditions", ()) if c["type"] == kind), "")


def queued(training: Bed) -> None:
    """While all nodes are busy: another task is told when it may start, and the first one that there is no pause."""
    training.submit(SPACE, "queued", nodes={"min": 3, "max": 3, "memory": "64Mi"})
    waiting = training.until(SPACE, "queued", lambda s: "estimatedStart" in s)
    assert waiting["reason"] == "WaitingForPlacement"
    assert waiting["estimatedStart"] >= training.get(SPACE, "queued")["metadata"]["creationTimestamp"]
    training.patch(SPACE, "digits", json.dumps({"spec": {"suspend": True}}))
    suspended = training.until(SPACE, "digits", lambda s: holds(s, "Suspended") == "False")
    assert "the ledger has no pause" in json.dumps(suspended["conditions"])
    training.patch(SPACE, "digits", json.dumps({"spec": {"suspend": False}}))
    training.cluster.kubectl("-n", SPACE, "delete", "tt", "queued", "--timeout=100s", timeout_s=110.0)


def test_the_example_becomes_a_verified_model_and_its_status_is_true_on_the_way(training: Bed) -> None:
    training.cluster.kubectl("-n", SPACE, "apply", "-k", str(EXAMPLE))
    running = training.until(
        SPACE, "digits", lambda s: s.get("phase") == "Running" and "estimatedEnd" in s, patience_s=PATIENCE_S
    )
    assert holds(running, "Running") == "True"
    assert len(running["workers"]) >= 3
    assert 0 < running["step"] <= running["steps"] == 240
    assert running["progress"] == f"{100 * running['step'] // 240}%"
    assert float(running["loss"]) > 0
    assert running["estimatedEnd"] >= running["startedAt"]
    queued(training)
    done = training.until(SPACE, "digits", lambda s: s.get("phase") == "Succeeded", patience_s=PATIENCE_S)
    assert (holds(done, "Verified"), holds(done, "Succeeded"), holds(done, "Running")) == ("True", "True", "False")
    assert done["tokens"]["escrowed"] == "0.0 TLK"
    assert done["segments"]["accepted"] == done["segments"]["total"] == 8
    model = eventually(lambda: training.get(SPACE, "digits-1", "modelversion"), "the ModelVersion is there")
    assert model["spec"]["version"] == done["modelVersion"] == "digits@1"
    assert model["spec"]["heldout"]["correct"] / model["spec"]["heldout"]["total"] > 0.9


def test_a_program_that_breaks_is_tried_again_and_names_worker_step_and_last_lines(training: Bed) -> None:
    code = (EXAMPLE / "digits.py").read_text()
    code = code.replace("def loss(", "CALLS = []\n\n\ndef loss(").replace(RETURN_LOSS, WORN_OUT + RETURN_LOSS)
    broken = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "broken", "namespace": SPACE}}
    training.cluster.apply(broken | {"data": {"digits.py": code}})
    training.cluster.kubectl("-n", SPACE, "apply", "-k", str(EXAMPLE))  # for its data
    task = yaml.safe_load((EXAMPLE / "task.yaml").read_text())
    task["metadata"] = {"name": "broken", "namespace": SPACE}
    task["spec"] |= {"retries": 1, "retryBackoffSeconds": 1, "nodes": {"min": 1, "max": 1, "memory": "256Mi"}}
    task["spec"]["program"]["configMap"] = "broken"
    task["spec"]["model"]["name"] = "broken"
    training.cluster.apply(task)
    failed = training.until(SPACE, "broken", lambda s: s.get("phase") == "Failed", patience_s=PATIENCE_S)
    assert (failed["reason"], failed["retried"]) == ("ModelRaised", 1)
    assert "worn out" in failed["message"]
    assert failed["failure"]["worker"].startswith("north-")
    assert failed["failure"]["step"] >= 30
    assert any("worn out" in line for line in failed["failure"]["logs"]), json.dumps(failed["failure"])
    (before,) = failed["previous"]
    assert before["reason"] == "ModelRaised"
    settled = training.until(SPACE, "broken", lambda s: not s.get("unsettled"), patience_s=PATIENCE_S)
    assert settled["tokens"]["escrowed"] == "0.0 TLK"
    assert settled["tokens"]["spent"] != "0.0 TLK", "the segment before the break was honest work"
