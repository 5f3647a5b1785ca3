"""What the node is: its accelerator by NVML, or an honest description of its processor where there is none."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import psutil
import pynvml

from talkoo_agent.nvml import nvml
from talkoo_agent.processor import processor_name
from talkoo_core.errors import Failed

CPU_CORE_POWER_MW = 15_000
"""Declared default for one busy core: a server core with its share of memory and losses draws 5 to 25 W."""


@dataclass(frozen=True, slots=True)
class Device:
    """`kind` is cpu or cuda; `power_mw` is the draw at full load, of the GPU or of one core."""

    kind: str
    description: str
    memory_bytes: int
    power_mw: int
    power_source: str

    @property
    def backend(self) -> str:
        return "nccl" if self.kind == "cuda" else "gloo"


def find_device(declared_power_mw: int = 0, declared_memory_bytes: int = 0) -> Device:
    """The first GPU, else the processor. Declared figures win over defaults and lower what is lent, never raise it.

    Raises Failed (code `gpu_lost`) when the GPU is there and does not answer.
    """
    with nvml() as answers:
        try:
            if answers and pynvml.nvmlDeviceGetCount() > 0:
                return _gpu(declared_power_mw, declared_memory_bytes)
        except pynvml.NVMLError as error:
            raise Failed(
                f"the first GPU does not answer ({error}); reset it or restart the node", code="gpu_lost"
            ) from None
    total = int(psutil.virtual_memory().total)
    return Device(
        kind="cpu",
        description=f"{processor_name()}, one core of {psutil.cpu_count() or 1}, {platform.machine()}",
        memory_bytes=min(declared_memory_bytes or total, total),
        power_mw=declared_power_mw or CPU_CORE_POWER_MW,
        power_source="declared",
    )


def _gpu(declared_power_mw: int, declared_memory_bytes: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    name = pynvml.nvmlDeviceGetName(handle)
    total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    try:
        limit_mw, source = int(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)), "nvml"
    except pynvml.NVMLError:  # some virtual GPUs hide it
        limit_mw, source = declared_power_mw or CPU_CORE_POWER_MW, "declared"
    return Device(
        kind="cuda",
        description=name if isinstance(name, str) else name.decode(),
        memory_bytes=min(declared_memory_bytes or total, total),
        power_mw=limit_mw,
        power_source=source,
    )


class EnergyMeter:
    """Energy of a piece of work in millijoules: by NVML on a GPU, else processor time at the declared power."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._start_mj: int | None = None

    def begin(self) -> None:
        self._start_mj = self._counter_mj()

    def end_mj(self, cpu_seconds: float) -> int:
        """Since `begin`. `cpu_seconds`: of the child that did the work."""
        now = self._counter_mj()
        if now is not None and self._start_mj is not None and now >= self._start_mj:
            return now - self._start_mj
        return round(cpu_seconds * self._device.power_mw)

    def _counter_mj(self) -> int | None:
        if self._device.kind != "cuda" or self._device.power_source != "nvml":
            return None
        with nvml() as answers:
            if not answers:
                return None
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(0)
                return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
            except pynvml.NVMLError:  # before Volta there is no counter
                return None
