"""The operator with no more rights than the chart gives it, wide and within namespaces, and without them: unhealthy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from talkoo_sim.operator_bed import NAMESPACE, OPERATOR, eventually, waits
from talkoo_sim.operator_rights import rules

pytestmark = [pytest.mark.federation, pytest.mark.timeout(900)]


def test_the_charts_rights_are_enough_and_a_watch_without_them_fails_the_probe(bed: Any, kubeconfig: Any) -> None:
    bed.namespace("rights", "alice")
    operator = bed.operator("rights", kubeconfig=kubeconfig(), resync_s=3.0)
    bed.submit("rights", "one", ttlSecondsAfterFinished=600)
    bed.until("rights", "one", waits)
    bed.until(NAMESPACE, "federation", lambda s: s.get("height"), kind="federation")
    bed.patch("rights", "one", json.dumps({"spec": {"cancel": True}}))
    bed.until("rights", "one", lambda s: s.get("phase") == "Cancelled")
    bed.submit("rights", "two")
    bed.until("rights", "two", waits)
    bed.cluster.kubectl("-n", "rights", "delete", "tt", "two", "--timeout=60s")
    assert "forbidden" not in operator.said()
    assert operator.probe()[0] == 200

    for role in [
        each for each in rules() if each["kind"] == "ClusterRole" and each["metadata"]["name"].endswith(OPERATOR)
    ]:
        for rule in role["rules"]:
            rule["verbs"] = [verb for verb in rule["verbs"] if verb != "watch"]
        bed.cluster.apply(role)
    bed.cluster.restart("kube-apiserver")  # running watches were allowed when they began
    bed.cluster.ready()
    eventually(lambda: bed.submit("rights", "unseen") is None, "the API server takes it")

    def unhealthy() -> str:
        status, words = operator.probe()
        return words if status in (0, 503) or operator.process.poll() is not None else ""

    eventually(unhealthy, "the probe fails, or the process has ended", 60.0)
    bed.cluster.kubectl(
        "-n", "rights", "patch", "tt", "unseen", "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
    )


def test_within_namespaces_it_needs_no_right_in_the_whole_cluster(bed: Any, kubeconfig: Any) -> None:
    bed.namespace("mine", "alice", limit="5 TLK")
    bed.namespace("yours", "alice")
    path = kubeconfig("operator.watchNamespaces={mine}", "agents.enabled=false")
    assert not [
        each for each in rules("operator.watchNamespaces={mine}", "agents.enabled=false") if "Cluster" in each["kind"]
    ]
    operator = bed.operator("narrow", kubeconfig=path, resync_s=3.0, watch_nodes=False, watch_namespaces=["mine"])
    bed.submit("mine", "seen")
    bed.submit("yours", "unseen", model={"name": "yours"})
    bed.until("mine", "seen", waits)
    bed.until(NAMESPACE, "federation", lambda s: s.get("height"), kind="federation")
    assert bed.status("yours", "unseen") == {}
    eventually(lambda: operator.probe()[0] == 200, "it is healthy")
    bed.cluster.kubectl("-n", "mine", "delete", "tt", "seen", "--timeout=60s")
    bed.cluster.kubectl("-n", "yours", "delete", "tt", "unseen", "--timeout=60s")
