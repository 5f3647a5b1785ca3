"""The whole loop in a real cluster: helm installs Talkoo, kubectl applies a task, and the model is trained and paid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from talkoo_core.amounts import parse_tlk
from talkoo_sim.cluster.deployment import Deployment
from talkoo_sim.cluster.own_images import ROOT

EXAMPLE = ROOT / "examples" / "digits"
TASK_S = 900.0
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
        return task if phase in ("Succeeded", "Failed", "Cancelled") else None

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
