"""What a GPUNode says of its node: facts and NVIDIA's labels from the agent's report, and the operator's judgement."""

from __future__ import annotations

from typing import Any

import pytest
from talkoo_api.agent.v1 import node_pb2
from talkoo_operator.heartbeats import BEATS_PER_S, SLOWEST_PACE_S, Beats, pace_s
from talkoo_operator.keeper import drain_reason
from talkoo_operator.node_facts import differs, facts_of, label_value, labels_of
from talkoo_operator.node_status import judged

NOW = "2026-01-01T00:00:00Z"
GPU = node_pb2.GpuState(
    index=0,
    uuid="GPU-1",
    product_name="NVIDIA H100 80GB HBM3",
    brand="Nvidia",
    architecture="Hopper",
    cuda_compute_capability="9.0",
    driver_version="580.105.08",
    cuda_driver_version="13.0",
    pcie_bus_id="0000:64:00.0",
    memory_bytes=81559 << 20,
    mig_capable=True,
)


def report(*gpus: node_pb2.GpuState, **fields: Any) -> node_pb2.NodeReport:
    base = {"node_id": "tlk1", "state": "ready", "reason": "Ready", "message": "the node takes work", "kind": "cuda"}
    return node_pb2.NodeReport(gpus=gpus, **base | fields)


def part(profile: str) -> node_pb2.MigState:
    return node_pb2.MigState(uuid=f"MIG-{profile}", profile=profile)


def test_labels_are_those_of_nvidias_feature_discovery() -> None:
    labels = labels_of(report(GPU, GPU))
    assert {name.removeprefix("nvidia.com/"): value for name, value in labels.items()} == {
        "gpu.present": "true",
        "gpu.count": "2",
        "gpu.product": "NVIDIA-H100-80GB-HBM3",
        "gpu.memory": "81559",
        "gpu.family": "hopper",
        "gpu.compute.major": "9",
        "gpu.compute.minor": "0",
        "cuda.driver-version.full": "580.105.08",
        "cuda.driver.major": "580",
        "cuda.driver.minor": "105",
        "cuda.driver.rev": "08",
        "cuda.runtime-version.full": "13.0",
        "cuda.runtime.major": "13",
        "cuda.runtime.minor": "0",
        "mig.capable": "true",
        "mig.strategy": "none",
        "talkoo.dev/device": "gpu",
    }


def test_a_node_that_has_lost_its_gpus_loses_their_labels() -> None:
    labels = labels_of(report(kind="cpu"))
    assert labels.pop("talkoo.dev/device") == "cpu"
    assert set(labels.values()) == {None}
    assert labels.keys() == labels_of(report(GPU)).keys() - {"talkoo.dev/device"}


@pytest.mark.parametrize(
    ("profiles", "strategy"),
    [
        ([["1g.10gb", "1g.10gb"], ["1g.10gb"]], "single"),
        ([["1g.10gb", "3g.40gb"]], "mixed"),
        ([["1g.10gb"], None], "mixed"),
        ([None, None], "none"),
    ],
)
def test_the_mig_strategy_is_what_the_cards_show(profiles: list[list[str] | None], strategy: str) -> None:
    cards = [
        node_pb2.GpuState(uuid=str(index), mig_enabled=names is not None, mig=[part(name) for name in names or ()])
        for index, names in enumerate(profiles)
    ]
    assert labels_of(report(*cards))["nvidia.com/mig.strategy"] == strategy


@pytest.mark.parametrize(
    ("text", "value"),
    [("Tesla V100-SXM2-32GB", "Tesla-V100-SXM2-32GB"), ("(R) card/2 ", "R-card-2"), ("x" * 80, "x" * 63), ("", "")],
)
def test_any_name_becomes_a_value_that_kubernetes_takes(text: str, value: str) -> None:
    assert label_value(text) == value


def test_a_shard_names_its_card_and_a_card_says_whether_it_is_lent() -> None:
    lent = node_pb2.GpuState(uuid="GPU-2", lent=True)
    shards = [node_pb2.HeldShard(task_id="task-1", attempt=1, card="GPU-2"), node_pb2.HeldShard(task_id="task-2")]
    facts = facts_of(report(GPU, lent, shards=shards), False, NOW)
    assert [device["lent"] for device in facts["devices"]] == [False, True]
    assert facts["shards"] == [
        {"task": "task-1", "attempt": 1, "rank": 0, "card": "GPU-2"},
        {"task": "task-2", "attempt": 0, "rank": 0},  # on a processor
    ]


def test_earnings_alone_are_not_worth_a_write_until_some_time_has_passed() -> None:
    before = facts_of(report(GPU, ledger=node_pb2.LedgerStanding(earned_utlk=1)), False, NOW)
    later = facts_of(report(GPU, ledger=node_pb2.LedgerStanding(earned_utlk=2)), False, "2026-01-01T00:00:10Z")
    assert not differs(later, before, 10.0, 60.0)
    assert differs(later, before, 60.0, 60.0)
    assert not differs(before | {"lastHeartbeat": "2027-01-01T00:00:00Z"}, before, 1e9, 60.0)
    assert differs(facts_of(report(GPU), True, NOW), before, 0.0, 60.0), "a cordon is written at once"


def node(spec: dict[str, Any] | None = None, joined: bool = True, **status: Any) -> dict[str, Any]:
    condition = {
        "type": "Joined",
        "status": str(joined),
        "reason": "Joined",
        "message": "",
        "lastTransitionTime": NOW,
        "observedGeneration": 1,
    }
    given = {"agent": {"state": "Ready", "reason": "Ready", "message": ""}, "conditions": [condition]} | status
    return {"metadata": {"name": "node-1", "generation": 1}, "spec": spec or {}, "status": given}


def agent(state: str, reason: str) -> dict[str, str]:
    return {"state": state, "reason": reason, "message": f"why {reason}"}


SHARDS = [{"task": "task-1", "attempt": 1, "rank": 0}]


@pytest.mark.parametrize(
    ("seen", "heard", "phase", "ready", "schedulable"),
    [
        (node(), True, "Ready", "True AgentReady", "True Offered"),
        (node(shards=SHARDS, agent=agent("Busy", "Busy")), True, "Busy", "True AgentReady", "False Busy"),
        (node(), False, "Unknown", "Unknown HeartbeatLost", "False NotReady"),
        (node(joined=False), True, "Joining", "True AgentReady", "True Offered"),
        (node(agent={}), None, "Joining", "False Starting", "False NotReady"),
        (node(agent=agent("Measuring", "Measuring")), True, "Joining", "False Measuring", "False NotReady"),
        (node(agent=agent("Off", "NoGPU")), True, "Unavailable", "False NoGPU", "False NotReady"),
        (node(agent=agent("Draining", "GPUFault")), True, "Unavailable", "False GPUFault", "False NotReady"),
        (node(agent=agent("Draining", "Jailed")), True, "Unavailable", "False Jailed", "False NotReady"),
        (node(cordoned=True, shards=SHARDS), True, "Draining", "True AgentReady", "False NodeCordoned"),
        (node(cordoned=True), True, "Drained", "True AgentReady", "False NodeCordoned"),
        (node({"unschedulable": True}), True, "Drained", "True AgentReady", "False Unschedulable"),
        (node(agent=agent("Draining", "Draining")), True, "Drained", "True AgentReady", "False Draining"),
    ],
)
def test_each_situation_has_one_phase_and_says_why(
    seen: dict[str, Any], heard: bool | None, phase: str, ready: str, schedulable: str
) -> None:
    status = judged(seen, heard, NOW)
    conditions = {c["type"]: f"{c['status']} {c['reason']}" for c in status["conditions"]}
    assert (status["phase"], conditions["Ready"], conditions["Schedulable"]) == (phase, ready, schedulable)
    assert conditions["Joined"] == f"{seen['status']['conditions'][0]['status']} Joined"


def test_an_operator_that_has_just_begun_leaves_a_silent_node_silent() -> None:
    seen = node()
    seen["status"] |= judged(seen, False, NOW)
    assert judged(seen, None, NOW)["phase"] == "Unknown"
    assert judged(seen, True, NOW)["phase"] == "Ready"


def test_a_faulty_card_is_named() -> None:
    devices = [{"name": "gpu-0", "faults": []}, {"name": "gpu-1", "faults": ["XID 79"]}]
    (healthy,) = [c for c in judged(node(devices=devices), True, NOW)["conditions"] if c["type"] == "Healthy"]
    assert (healthy["status"], healthy["reason"]) == ("False", "GPUFault")
    assert "gpu-1: XID 79" in healthy["message"]


def test_a_beat_is_a_change_by_our_own_clock() -> None:
    """The times in a Lease may be wrong by any amount."""
    beats = Beats()
    assert beats.note({"node-1": ("1999", 40)}, now=0.0) == []
    assert beats.heard("node-1") is None
    assert beats.note({"node-1": ("1999", 40)}, now=15.0) == []
    assert beats.note({"node-1": ("2000", 40)}, now=30.0) == ["node-1"]
    assert beats.heard("node-1") is True
    assert beats.note({"node-1": ("2000", 40)}, now=70.0) == []
    assert beats.note({"node-1": ("2000", 40)}, now=71.0) == ["node-1"]
    assert beats.heard("node-1") is False
    assert beats.note({"node-1": ("1998", 40)}, now=72.0) == ["node-1"], "a clock that was set back"
    assert beats.note({}, now=73.0) == ["node-1"]
    assert beats.heard("node-1") is None


def test_a_node_that_was_silent_from_the_start_is_found_silent() -> None:
    beats = Beats()
    beats.note({"node-1": ("1999", 40)}, now=0.0)
    assert beats.note({"node-1": ("1999", 40)}, now=41.0) == ["node-1"]
    assert beats.heard("node-1") is False


def test_the_reason_of_an_administrator_comes_before_the_cordon() -> None:
    assert drain_reason({}, cordoned=False) == ""
    assert drain_reason({}, cordoned=True) == "its Kubernetes node is cordoned"
    assert drain_reason({"unschedulable": True, "reason": "new fans"}, cordoned=True) == "new fans"


@pytest.mark.parametrize(("nodes", "pace"), [(0, 10), (1, 10), (70, 10), (71, 20), (1000, 150), (2100, 300)])
def test_many_nodes_beat_less_often(nodes: int, pace: int) -> None:
    assert pace_s(nodes) == pace
    assert nodes / pace <= BEATS_PER_S
    assert pace_s(100_000) == SLOWEST_PACE_S
