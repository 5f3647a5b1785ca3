"""A GPUNode's facts and labels from what its agent reports. Pure. Judgement is the operator's (`node_status`)."""

from __future__ import annotations

import re
from typing import Any

from talkoo_api.agent.v1 import node_pb2

from talkoo_core.amounts import format_tlk

Object = dict[str, Any]
MIB = 1 << 20
GPUS_MAX, SHARDS_MAX, FAULTS_MAX = 64, 64, 16
"""As in the resource's schema."""
LABEL_MAX = 63
NVIDIA = "nvidia.com/"
SLOW = "ledger"
"""Changes with each verified segment, and is not worth a write at once."""
STAMP = "lastHeartbeat"
"""Is written with whatever else is; alone it is what the Lease is for."""


def facts_of(report: node_pb2.NodeReport, cordoned: bool, now: str) -> Object:
    """The part of the status that the agent answers for; lists and mappings are whole, for a merge patch."""
    return {
        "lastHeartbeat": now,
        "cordoned": cordoned,
        "agent": {
            "version": report.version,
            "state": report.state.capitalize(),
            "reason": report.reason,
            "message": report.message[:1024],
        },
        "device": {"type": "GPU" if report.kind == "cuda" else "Processor", "description": report.device[:256]},
        "hardwareClass": report.hardware_class,
        "capacity": {
            "gpus": len(report.gpus),
            "memory": f"{report.memory_bytes // MIB}Mi",
            "speedFlops": report.speed_flops,
            "slots": report.slots,
        },
        "priceUtlkPerGflop": report.price_utlk_per_gflop,
        "devices": [_device(gpu) for gpu in report.gpus[:GPUS_MAX]],
        "shards": [
            {"task": shard.task_id, "attempt": shard.attempt, "rank": shard.rank}
            | ({"card": shard.card} if shard.card else {})
            for shard in report.shards[:SHARDS_MAX]
        ],
        "ledger": _standing(report.ledger) if report.HasField("ledger") else None,
    }


def _device(gpu: node_pb2.GpuState) -> Object:
    """Names as NVIDIA's DRA driver publishes them in a ResourceSlice."""
    return {
        "name": f"gpu-{gpu.index}",
        "uuid": gpu.uuid,
        "productName": gpu.product_name,
        "brand": gpu.brand,
        "architecture": gpu.architecture,
        "cudaComputeCapability": gpu.cuda_compute_capability,
        "driverVersion": gpu.driver_version,
        "cudaDriverVersion": gpu.cuda_driver_version,
        "pcieBusID": gpu.pcie_bus_id,
        "memory": f"{gpu.memory_bytes // MIB}Mi",
        "migCapable": gpu.mig_capable,
        "migEnabled": gpu.mig_enabled,
        "migDevices": [
            {"uuid": part.uuid, "profile": part.profile, "memory": f"{part.memory_bytes // MIB}Mi"} for part in gpu.mig
        ],
        "lent": gpu.lent,
        "healthy": not gpu.faults,
        "faults": list(gpu.faults[:FAULTS_MAX]),
    }


def _standing(ledger: node_pb2.LedgerStanding) -> Object:
    return {
        "stake": format_tlk(ledger.stake_utlk),
        "earned": format_tlk(ledger.earned_utlk),
        "slashed": format_tlk(ledger.slashed_utlk),
        "verifiedSegments": ledger.verified_segments,
        "verifiedGflop": ledger.verified_gflop,
        "jailed": ledger.jailed,
    }


def labels_of(report: node_pb2.NodeReport) -> dict[str, str | None]:
    """After NVIDIA's GPU feature discovery; None removes one of an earlier time. The first card speaks for all."""
    labels: dict[str, str | None] = dict.fromkeys(map(NVIDIA.__add__, _LABELS))
    labels["talkoo.dev/device"] = "gpu" if report.gpus else "cpu"
    if not report.gpus:
        return labels
    first = report.gpus[0]
    major, _, minor = first.cuda_compute_capability.partition(".")
    driver = [*first.driver_version.split("."), "", "", ""][:3]
    runtime = [*first.cuda_driver_version.split("."), ""][:2]
    values = {
        "gpu.present": "true",
        "gpu.count": str(len(report.gpus)),
        "gpu.product": first.product_name,
        "gpu.memory": str(first.memory_bytes // MIB),
        "gpu.family": first.architecture.lower(),
        "gpu.compute.major": major,
        "gpu.compute.minor": minor,
        "cuda.driver-version.full": first.driver_version,
        "cuda.driver.major": driver[0],
        "cuda.driver.minor": driver[1],
        "cuda.driver.rev": driver[2],
        "cuda.runtime-version.full": first.cuda_driver_version,
        "cuda.runtime.major": runtime[0],
        "cuda.runtime.minor": runtime[1],
        "mig.capable": str(first.mig_capable).lower(),
        "mig.strategy": _mig_strategy(report),
    }
    return labels | {NVIDIA + name: label_value(value) or None for name, value in values.items()}


_LABELS = (
    "gpu.present",
    "gpu.count",
    "gpu.product",
    "gpu.memory",
    "gpu.family",
    "gpu.compute.major",
    "gpu.compute.minor",
    "cuda.driver-version.full",
    "cuda.driver.major",
    "cuda.driver.minor",
    "cuda.driver.rev",
    "cuda.runtime-version.full",
    "cuda.runtime.major",
    "cuda.runtime.minor",
    "mig.capable",
    "mig.strategy",
)


def _mig_strategy(report: node_pb2.NodeReport) -> str:
    """`single` when all cards are cut into parts of one kind, `mixed` otherwise, `none` without MIG."""
    if not any(gpu.mig_enabled for gpu in report.gpus):
        return "none"
    profiles = {part.profile for gpu in report.gpus for part in gpu.mig}
    return "single" if len(profiles) == 1 and all(gpu.mig_enabled for gpu in report.gpus) else "mixed"


def label_value(text: str) -> str:
    """What Kubernetes takes as a label's value, as NVIDIA writes it: `NVIDIA-H100-80GB-HBM3`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text.strip())[:LABEL_MAX].strip("-._")


def differs(facts: Object, written: Object, waited_s: float, slow_s: float) -> bool:
    """Whether the facts are worth a write: at once when a person or the operator acts on them, else after `slow_s`."""
    if any(facts[name] != written.get(name) for name in facts if name not in (SLOW, STAMP)):
        return True
    return waited_s >= slow_s and facts[SLOW] != written.get(SLOW)
