"""What the API server itself refuses, defaults and shows: the schemas of our resources under a real one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from talkoo_core.errors import Failed
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.cluster.own_images import ROOT
from talkoo_sim.operator_bed import CRDS, make_namespace

SPACE = "admission"


def document(name: str, **spec: Any) -> dict[str, Any]:
    base = {
        "program": {"configMap": "tiny", "module": "tiny", "config": {"channels": 4}},
        "data": {"path": "tiny.txt"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "globalBatch": 4,
        "steps": 10,
        "stepsPerSegment": 5,
        "auditRate": 0.5,
        "nodes": {"min": 1, "max": 2},
        "budget": "1 TLK",
        "price": "1 TLK",
        "model": {"name": name},
    }
    metadata = {"name": name, "namespace": SPACE}
    return {"apiVersion": "talkoo.dev/v1alpha1", "kind": "TrainingTask", "metadata": metadata, "spec": base | spec}


@pytest.fixture
def cluster(api_server: Cluster) -> Cluster:
    make_namespace(api_server, SPACE)
    return api_server


def refused(cluster: Cluster, *objects: dict[str, Any]) -> str:
    with pytest.raises(Failed) as caught:
        cluster.apply(*objects)
    return str(caught.value)


CHANGES: dict[str, Any] = {
    "mode": None,
    "program": {"configMap": "tiny", "module": "tiny", "config": {"channels": 5}},
    "data": {"path": "other.txt"},
    "optimizer": {"name": "sgd", "lr": 0.2},
    "globalBatch": 8,
    "steps": 11,
    "stepsPerSegment": 4,
    "seed": 1,
    "nodes": {"min": 2, "max": 2},
    "budget": "2 TLK",
    "price": "2 TLK",
    "auditRate": 0.4,
    "model": {"name": "other"},
}
"""`mode` has one value only, so far: the schema refuses any other before the rule could."""
MUTABLE = {
    "suspend": True,
    "cancel": True,
    "priority": 3,
    "deadlineSeconds": 60,
    "retries": 2,
    "retryBackoffSeconds": 5,
    "ttlSecondsAfterFinished": 9,
}


def test_every_field_of_the_spec_is_known_to_be_fixed_or_free() -> None:
    crd = yaml.safe_load((CRDS / "trainingtasks.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert set(spec) == set(CHANGES) | set(MUTABLE)
    for field in CHANGES:
        assert spec[field]["x-kubernetes-validations"][0]["message"].startswith(f"spec.{field} cannot be changed")


def test_each_fixed_field_is_refused_with_a_sentence_and_each_free_one_is_taken(cluster: Cluster) -> None:
    cluster.apply(document("fixed"))
    for field, value in CHANGES.items():
        if value is not None:
            said = refused(cluster, document("fixed", **{field: value}))
            assert f"spec.{field} cannot be changed" in said, said
    for field in ("stepsPerSegment", "auditRate"):
        change = document("fixed")
        del change["spec"][field]
        assert f"spec.{field} can be neither added nor removed" in refused(cluster, change)
    for field, value in MUTABLE.items():
        if field != "cancel":
            cluster.apply(document("fixed", **{field: value}))
    cluster.apply(document("fixed", cancel=True))
    assert "spec.cancel cannot be taken back" in refused(cluster, document("fixed", cancel=False))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"nodes": {"min": 3, "max": 2}}, "spec.nodes.max is less than spec.nodes.min"),
        ({"globalBatch": 1}, "fewer samples than spec.nodes.max"),
        ({"stepsPerSegment": 11}, "spec.stepsPerSegment is more than spec.steps"),
        ({"program": {"module": "tiny"}}, "spec.program.configMap is missing"),
        ({"data": {"dataset": "d", "configMap": "c"}}, "name one of them"),
        ({"data": {"sha256": "0" * 64}}, "spec.data.path is missing"),
        ({"optimizer": {"name": "lion"}}, "Unsupported value"),
        ({"retries": 11}, "less than or equal to 10"),
        ({"deadlineSeconds": 0}, "greater than or equal to 1"),
        ({"stepz": 3}, "stepz"),
    ],
)
def test_an_impossible_task_is_refused_with_a_sentence(cluster: Cluster, spec: dict[str, Any], said: str) -> None:
    assert said in refused(cluster, document("impossible", **spec))


def test_defaults_are_filled_in(cluster: Cluster) -> None:
    cluster.apply(document("defaults"))
    spec = cluster.get("-n", SPACE, "trainingtask", "defaults")["spec"]
    filled = {k: spec[k] for k in ("mode", "seed", "priority", "retries", "retryBackoffSeconds")}
    assert filled == {"mode": "ddp", "seed": 0, "priority": 0, "retries": 0, "retryBackoffSeconds": 30}
    assert spec["nodes"]["memory"] == "256Mi"


def test_short_names_categories_and_columns(cluster: Cluster) -> None:
    cluster.apply(document("columns"))
    head = cluster.kubectl("-n", SPACE, "get", "tt").splitlines()[0].split()
    assert head == ["NAME", "PHASE", "PROGRESS", "LOSS", "VERIFIED", "SPENT", "MODEL", "AGE"]
    wide = cluster.kubectl("-n", SPACE, "get", "tt", "-o", "wide").splitlines()[0].split()
    assert {"REASON", "ETA", "WORKERS", "TASK"} <= set(wide)
    assert "trainingtask.talkoo.dev/columns" in cluster.kubectl("-n", SPACE, "get", "talkoo", "-o", "name")
    assert "trainingtask.talkoo.dev/columns" in cluster.kubectl("-n", SPACE, "get", "all", "-o", "name")
    for short in ("mv", "tds", "fed", "prop"):
        cluster.kubectl("-n", SPACE, "get", short)


def test_status_is_written_only_through_its_subresource(cluster: Cluster) -> None:
    cluster.apply(document("statuses") | {"status": {"phase": "Succeeded"}})
    assert "phase" not in cluster.get("-n", SPACE, "trainingtask", "statuses").get("status", {})
    before = cluster.get("-n", SPACE, "trainingtask", "statuses")["metadata"]["generation"]
    change = json.dumps({"status": {"phase": "Running"}})
    cluster.kubectl("-n", SPACE, "patch", "tt", "statuses", "--subresource=status", "--type=merge", "-p", change)
    found = cluster.get("-n", SPACE, "trainingtask", "statuses")
    assert (found["status"]["phase"], found["metadata"]["generation"]) == ("Running", before)


OTHERS = {
    "Dataset": {"configMap": {"name": "tiny", "key": "tiny.txt"}},
    "Proposal": {"action": "LeaveFederation"},
    "ModelVersion": {"version": "m@1", "model": "m", "number": 1, "taskId": "task-1", "paramsSha256": "0" * 64},
}
OTHER_CHANGES = {
    "Dataset": {"sha256": "0" * 64},
    "Proposal": {"action": "RotateKey"},
    "ModelVersion": {"number": 2},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_other_resources_cannot_be_changed_either(cluster: Cluster, kind: str) -> None:
    one = {
        "apiVersion": "talkoo.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "fixed", "namespace": SPACE},
        "spec": OTHERS[kind],
    }
    cluster.apply(one)
    said = refused(cluster, one | {"spec": OTHERS[kind] | OTHER_CHANGES[kind]})
    assert "make a new one" in said or "cannot be changed" in said


@pytest.mark.parametrize(
    ("kind", "name", "spec", "said"),
    [
        ("Dataset", "d", {"sha256": "0" * 64}, "and its fileName"),
        ("Dataset", "d", {}, "name a configMap"),
        ("Federation", "another", {}, "its name is federation"),
        ("Federation", "federation", {"spendLimit": "much"}, "should match"),
        ("Proposal", "p", {"action": "ApproveMember"}, "spec.organization is the newcomer"),
        ("Proposal", "p", {"action": "LeaveFederation", "organization": "x"}, "spec.organization is the newcomer"),
        ("Proposal", "p", {"action": "Annex"}, "Unsupported value"),
    ],
)
def test_what_the_others_refuse(cluster: Cluster, kind: str, name: str, spec: dict[str, Any], said: str) -> None:
    metadata = {"name": name, "namespace": SPACE}
    one = {"apiVersion": "talkoo.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    assert said in refused(cluster, one)


def test_the_example_is_taken_as_it_stands(cluster: Cluster) -> None:
    cluster.kubectl("-n", SPACE, "apply", "--dry-run=server", "-k", str(ROOT / "examples" / "digits"))
