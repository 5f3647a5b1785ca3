"""The API server's own priority and fairness answers the operator with 429: nothing is lost by it, nothing doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from talkoo_sim.operator_bed import NAMESPACE, OPERATOR, eventually, task, waits
from talkoo_sim.operator_rights import remove

pytestmark = [pytest.mark.federation, pytest.mark.timeout(900)]
SPACE, LEVEL = "throttled", "talkoo-throttled"
FLOWCONTROL = "flowcontrol.apiserver.k8s.io/v1"
TASKS = 16


class Throttle:
    """Of the operator's calls one is served at a time, the others are refused. Leases keep their own level."""

    def __init__(self, bed: Any) -> None:
        limited = {
            "nominalConcurrencyShares": 0,  # a call is served all the same when no other of the level is
            "lendablePercent": 0,
            "borrowingLimitPercent": 0,
            "limitResponse": {"type": "Reject"},
        }
        subject = {"kind": "ServiceAccount", "serviceAccount": {"name": OPERATOR, "namespace": NAMESPACE}}
        what = {"verbs": ["*"], "apiGroups": ["", "talkoo.dev"], "resources": ["*"]}
        where = {"namespaces": ["*"], "clusterScope": True}
        schema = {
            "matchingPrecedence": 2,
            "priorityLevelConfiguration": {"name": LEVEL},
            "rules": [{"subjects": [subject], "resourceRules": [what | where]}],
        }
        self._bed = bed
        self._objects = (
            _of_kind("PriorityLevelConfiguration", {"type": "Limited", "limited": limited}),
            _of_kind("FlowSchema", schema),
        )

    def begin(self) -> None:
        self._bed.cluster.apply(*self._objects)
        eventually(lambda: self._metric("nominal_limit_seats") == 0, "the API server goes by it")

    def end(self) -> None:
        remove(self._bed.cluster, *self._objects)

    @property
    def refused(self) -> int:
        """Calls of the operator that the API server has answered with 429."""
        return self._metric("rejected_requests_total") or 0

    def _metric(self, name: str) -> int | None:
        """The sum for our level; None where it has none."""
        lines = self._bed.cluster.kubectl("get", "--raw", "/metrics").splitlines()
        ours = [line for line in lines if line.startswith(f"apiserver_flowcontrol_{name}{{") and LEVEL in line]
        return sum(int(float(line.rpartition(" ")[2])) for line in ours) if ours else None


def _of_kind(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": FLOWCONTROL, "kind": kind, "metadata": {"name": LEVEL}, "spec": spec}


@pytest.fixture
def throttle(bed: Any) -> Iterator[Throttle]:
    made = Throttle(bed)
    try:
        yield made
    finally:
        made.end()


def _ours(bed: Any) -> list[Any]:
    return [each for each in bed.on_ledger("alice") if each.spec.name.startswith("throttled-")]


def test_an_operator_whose_calls_are_refused_for_being_many_loses_and_doubles_nothing(
    bed: Any, kubeconfig: Any, throttle: Throttle
) -> None:
    bed.namespace(SPACE, "alice")
    operator = bed.operator("throttled", kubeconfig=kubeconfig(), resync_s=5.0)
    eventually(lambda: operator.leads, "the operator leads")
    throttle.begin()
    names = [f"throttled-{number}" for number in range(TASKS)]
    bed.cluster.apply(*(task(SPACE, name) for name in names))
    for name in names:
        bed.until(SPACE, name, waits)
    refused = throttle.refused
    assert refused > 0
    assert Counter(each.spec.name for each in _ours(bed)) == Counter(names)
    bed.cluster.kubectl("-n", SPACE, "delete", "tt", "--all", "--timeout=120s")  # to cancel them takes calls, too
    assert {each.escrow_utlk for each in _ours(bed)} == {0}
    assert throttle.refused > refused
    assert operator.process.poll() is None
    assert operator.probe()[0] == 200
