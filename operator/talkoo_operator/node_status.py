"""What a GPUNode's phase and conditions say, from its agent's facts and its heart-beat. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from talkoo_operator.status import with_condition

Object = dict[str, Any]
Judgement = tuple[bool | None, str, str]
"""Status, reason, message of a condition."""
SILENT = "HeartbeatLost"


def judged(node: Mapping[str, Any], beats: bool | None, now: str) -> Object:
    """`phase` and `conditions` of a GPUNode whose Joined condition is set. `beats`: whether its heart-beat is heard;
    None when the operator has not listened for long enough, and what was said before stands.
    """
    status, meta = node["status"], node["metadata"]
    known = {condition["type"]: condition for condition in status.get("conditions", ())}
    if beats is None and "Ready" in known:
        beats = known["Ready"]["reason"] != SILENT
    ready = _ready(status, beats)
    schedulable = _schedulable(node, ready)
    made = dict(status)
    for kind, (holds, reason, message) in (
        ("Ready", ready),
        ("Schedulable", schedulable),
        ("Healthy", _healthy(status)),
    ):
        made = with_condition(
            made, kind, holds=holds, reason=reason, message=message, generation=meta["generation"], now=now
        )
    joined = known.get("Joined", {}).get("status") == "True"
    return {
        "conditions": made["conditions"],
        "phase": _phase(status, joined, ready, schedulable),
        "observedGeneration": meta["generation"],
    }


def _ready(status: Mapping[str, Any], beats: bool | None) -> Judgement:
    agent = status.get("agent")
    if beats is False:
        return None, SILENT, "its keeper does not renew its Lease, or its agent does not report"
    if not agent:
        return False, "Starting", "its agent has not reported yet"
    state, reason = agent["state"], agent["reason"]
    if state in ("Off", "Measuring") or reason in ("Jailed", "GPUFault"):
        return False, reason, agent["message"]
    return True, "AgentReady", "its agent runs and reports"


def _schedulable(node: Mapping[str, Any], ready: Judgement) -> Judgement:
    """What keeps new shards away, the most lasting first."""
    spec, status = node.get("spec", {}), node["status"]
    if spec.get("unschedulable"):
        return False, "Unschedulable", spec.get("reason") or "spec.unschedulable is true"
    if status.get("cordoned"):
        return False, "NodeCordoned", "its Kubernetes node is cordoned"
    if ready[0] is not True:
        return False, "NotReady", f"{ready[1]}: {ready[2]}"
    agent = status["agent"]
    if agent["state"] == "Ready":
        return True, "Offered", "it is offered to the organization's scheduler"
    return False, agent["reason"], agent["message"]


def _healthy(status: Mapping[str, Any]) -> Judgement:
    devices = status.get("devices", ())
    faulty = [device for device in devices if device.get("faults")]
    if faulty:
        words = "; ".join(f"{device['name']}: {', '.join(device['faults'])}" for device in faulty)
        return False, "GPUFault", f"{words}; reset it and restart the agent"
    if devices:
        return True, "NoFaults", f"{len(devices)} GPUs without a fault since the agent began"
    return True, "NoGPU", "there is no GPU to be faulty"


def _phase(status: Mapping[str, Any], joined: bool, ready: Judgement, schedulable: Judgement) -> str:
    """One word for a table."""
    if ready[0] is None:
        return "Unknown"
    if not joined:
        return "Joining"
    leaving = schedulable[1] in ("Unschedulable", "NodeCordoned", "Draining")
    if leaving and status.get("shards"):
        return "Draining"
    if leaving:
        return "Drained"
    if ready[0] is False:
        return "Joining" if ready[1] in ("Starting", "Measuring") else "Unavailable"
    return "Busy" if status.get("shards") else "Ready"
