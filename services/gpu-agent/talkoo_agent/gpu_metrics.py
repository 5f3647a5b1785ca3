"""What an agent tells Prometheus of its GPUs, each with the pod that holds it; docs/monitoring.md explains each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from talkoo_api.agent.v1 import node_pb2

from talkoo_agent.nvml import Reading
from talkoo_runtime.metrics import Counter, Gauge, before_scrape, counter, gauge

LABELS = ("gpu", "uuid", "pod", "namespace")
UTILIZATION = gauge("talkoo_gpu_utilization_ratio", "Part of the time in which a kernel ran on the GPU.", LABELS)
MEMORY_BUSY = gauge(
    "talkoo_gpu_memory_utilization_ratio", "Part of the time in which its memory was read or written.", LABELS
)
MEMORY_USED = gauge("talkoo_gpu_memory_used_bytes", "Memory of the GPU that is taken.", LABELS)
MEMORY_TOTAL = gauge("talkoo_gpu_memory_total_bytes", "All of its memory.", LABELS)
TEMPERATURE = gauge("talkoo_gpu_temperature_celsius", "Of the GPU's core.", LABELS)
POWER = gauge("talkoo_gpu_power_watts", "What it draws.", LABELS)
POWER_LIMIT = gauge("talkoo_gpu_power_limit_watts", "What it may draw.", LABELS)
ENERGY = counter("talkoo_gpu_energy_joules_total", "What it has drawn while the agent ran.", LABELS)
ECC_CORRECTED = counter(
    "talkoo_gpu_ecc_corrected_errors_total", "Memory errors that were corrected while the agent ran.", LABELS
)
ECC_UNCORRECTED = counter(
    "talkoo_gpu_ecc_uncorrected_errors_total", "Memory errors that could not be corrected, likewise.", LABELS
)
XID = counter("talkoo_gpu_xid_errors_total", "Faults that the driver reported, by NVIDIA's number.", (*LABELS, "xid"))
PCIE_SENT = gauge("talkoo_gpu_pcie_sent_bytes_per_second", "From the GPU over PCIe.", LABELS)
PCIE_RECEIVED = gauge("talkoo_gpu_pcie_received_bytes_per_second", "To the GPU over PCIe.", LABELS)
PCIE_REPLAYS = counter("talkoo_gpu_pcie_replays_total", "Packets that PCIe had to send again.", LABELS)
HEALTHY = gauge("talkoo_gpu_healthy", "1 while the GPU has had no fault since the agent began.", LABELS)
MIG_ENABLED = gauge("talkoo_gpu_mig_enabled", "1 while it is cut into parts.", LABELS)
MIG_MEMORY = gauge(
    "talkoo_gpu_mig_memory_total_bytes",
    "Memory of a part of a GPU, by the part's UUID and profile.",
    (*LABELS, "profile"),
)
GAUGES: Mapping[Gauge, Callable[[Reading], float | None]] = {
    UTILIZATION: lambda now: now.utilization,
    MEMORY_BUSY: lambda now: now.memory_utilization,
    MEMORY_USED: lambda now: now.memory_used_bytes,
    MEMORY_TOTAL: lambda now: now.gpu.memory_bytes,
    TEMPERATURE: lambda now: now.temperature_c,
    POWER: lambda now: None if now.power_mw is None else now.power_mw / 1000,
    POWER_LIMIT: lambda now: None if now.power_limit_mw is None else now.power_limit_mw / 1000,
    PCIE_SENT: lambda now: now.pcie_sent_bps,
    PCIE_RECEIVED: lambda now: now.pcie_received_bps,
    HEALTHY: lambda now: not now.faults,
    MIG_ENABLED: lambda now: now.gpu.mig_enabled,
}
COUNTERS: Mapping[Counter, Callable[[Reading], float | None]] = {
    ENERGY: lambda now: None if now.energy_mj is None else now.energy_mj / 1000,
    ECC_CORRECTED: lambda now: now.ecc_corrected,
    ECC_UNCORRECTED: lambda now: now.ecc_uncorrected,
    PCIE_REPLAYS: lambda now: now.pcie_replays,
}


def watch_gpus(latest: Callable[[], tuple[Reading, ...]], pods: Callable[[], node_pb2.GpuPods]) -> None:
    """Set the gauges at each scrape; what a card does not tell has no series."""

    def read() -> None:
        readings, holders = latest(), pods()
        for metric, value_of in GAUGES.items():
            metric.clear()
            for now in readings:
                value = value_of(now)
                if value is not None:
                    metric.set(value, **labels_of(now, now.gpu.uuid, holders))
        MIG_MEMORY.clear()
        for now in readings:
            for part in now.gpu.mig:
                MIG_MEMORY.set(part.memory_bytes, **labels_of(now, part.uuid, holders), profile=part.profile)

    before_scrape(read)


def count(before: tuple[Reading, ...], now: tuple[Reading, ...], pods: node_pb2.GpuPods) -> None:
    """What came between two readings is booked to the pod that holds the card now."""
    known = {reading.gpu.uuid: reading for reading in before}
    for reading in now:
        labels = labels_of(reading, reading.gpu.uuid, pods)
        for xid in reading.xids:
            XID.add(1, **labels, xid=str(xid))
        if reading.gpu.uuid in known:
            for metric, value_of in COUNTERS.items():
                old, new = value_of(known[reading.gpu.uuid]), value_of(reading)
                # A driver that was loaded anew counts from zero.
                if old is not None and new is not None and new > old:
                    metric.add(new - old, **labels)


def labels_of(reading: Reading, uuid: str, pods: node_pb2.GpuPods) -> dict[str, str]:
    """Empty names where no pod holds it, or nobody tells."""
    holder = pods.by_device[uuid] if uuid in pods.by_device else node_pb2.GpuPods.Holder()
    return {"gpu": str(reading.gpu.index), "uuid": uuid, "pod": holder.pod, "namespace": holder.namespace}
