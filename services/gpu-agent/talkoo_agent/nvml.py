"""The GPUs of this machine by NVML: what each is, and how it is now. What a card does not tell is None, not a guess."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pynvml

from talkoo_core.errors import Failed

log = logging.getLogger(__name__)

MIG_DEVICES_MAX = 16
"""More instances than any card can be cut into."""
EVENTS_MAX = 64
"""Events taken at one reading; the rest waits for the next."""
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""Faults of a program on the card, not of the card: those that NVIDIA's device plugin passes over, too."""
ARCHITECTURES = {
    pynvml.NVML_DEVICE_ARCH_KEPLER: "Kepler",
    pynvml.NVML_DEVICE_ARCH_MAXWELL: "Maxwell",
    pynvml.NVML_DEVICE_ARCH_PASCAL: "Pascal",
    pynvml.NVML_DEVICE_ARCH_VOLTA: "Volta",
    pynvml.NVML_DEVICE_ARCH_TURING: "Turing",
    pynvml.NVML_DEVICE_ARCH_AMPERE: "Ampere",
    pynvml.NVML_DEVICE_ARCH_ADA: "Ada Lovelace",
    pynvml.NVML_DEVICE_ARCH_HOPPER: "Hopper",
    pynvml.NVML_DEVICE_ARCH_BLACKWELL: "Blackwell",
    pynvml.NVML_DEVICE_ARCH_RUBIN: "Rubin",
}
BRANDS = {
    pynvml.NVML_BRAND_QUADRO: "Quadro",
    pynvml.NVML_BRAND_TESLA: "Tesla",
    pynvml.NVML_BRAND_GEFORCE: "GeForce",
    pynvml.NVML_BRAND_TITAN: "Titan",
    pynvml.NVML_BRAND_QUADRO_RTX: "QuadroRTX",
    pynvml.NVML_BRAND_NVIDIA_RTX: "NvidiaRTX",
    pynvml.NVML_BRAND_NVIDIA: "Nvidia",
    pynvml.NVML_BRAND_GEFORCE_RTX: "GeForceRTX",
    pynvml.NVML_BRAND_TITAN_RTX: "TitanRTX",
}


@dataclass(frozen=True, slots=True)
class MigInstance:
    """A part of a card in MIG mode. `profile` as NVIDIA writes it, such as `1g.10gb`."""

    uuid: str
    profile: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a card is. Names as NVIDIA's DRA driver gives them; `pcie_bus_id` as in sysfs, such as `0000:64:00.0`."""

    index: int
    uuid: str
    product: str
    brand: str
    architecture: str
    compute_capability: str
    """Such as `9.0`."""
    memory_bytes: int
    driver_version: str
    cuda_version: str
    """The newest CUDA that the driver can run, such as `12.8`."""
    pcie_bus_id: str
    mig_capable: bool
    mig_enabled: bool
    mig: tuple[MigInstance, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a card is now. ECC counts are those since its driver was loaded; PCIe rates are bytes per second."""

    gpu: Gpu
    utilization: float | None
    """0 to 1, over the card's last sample period."""
    memory_utilization: float | None
    memory_used_bytes: int | None
    temperature_c: int | None
    power_mw: int | None
    power_limit_mw: int | None
    energy_mj: int | None
    """Since the driver was loaded."""
    ecc_corrected: int | None
    ecc_uncorrected: int | None
    pcie_sent_bps: int | None
    pcie_received_bps: int | None
    pcie_replays: int | None
    xids: tuple[int, ...]
    """New since the last reading."""
    faults: tuple[str, ...]
    """What is wrong with the card since this process began; empty for a healthy one."""


@contextlib.contextmanager
def nvml() -> Iterator[bool]:
    """Yields whether NVML answers; a machine without a driver is an ordinary machine."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


class GpuWatch:
    """Reads all cards again and again; NVML stays open between, because it reports XIDs only to whoever waits.

    Calls block for milliseconds: run them in a thread, one at a time. Without a driver there are no cards.
    """

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self._gpus: dict[str, Gpu] = {}
        self._events: Any = None
        self._faults: dict[str, dict[str, None]] = {}
        self._ecc_at_start: dict[str, int] = {}
        self._open = False
        self.latest: tuple[Reading, ...] = ()

    def open(self) -> None:
        """Find the cards. Their number does not change while the process lives.

        Raises Failed (code `gpu_lost`) when there are some and none answers.
        """
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        self._open = True
        lost = ""
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                gpu = describe(index, handle)
            except pynvml.NVMLError as error:
                lost = str(error)
                log.error("GPU %d does not answer (%s) and is left out", index, error)
                continue
            self._handles[gpu.uuid], self._gpus[gpu.uuid], self._faults[gpu.uuid] = handle, gpu, {}
        if lost and not self._gpus:
            raise Failed(f"no GPU answers ({lost}); reset them or restart the node", code="gpu_lost")
        self._events = self._register_events()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._events is not None:
            pynvml.nvmlEventSetFree(self._events)
        pynvml.nvmlShutdown()

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(self._gpus.values())

    def read(self) -> tuple[Reading, ...]:
        """All cards now; kept in `latest`."""
        if not self._open:
            return ()
        xids = self._new_xids()
        self.latest = tuple(self._read_one(uuid, tuple(xids.get(uuid, ()))) for uuid in self._handles)
        return self.latest

    def _register_events(self) -> Any:
        """None where the driver has no events for us, such as on a virtual GPU."""
        events = told(pynvml.nvmlEventSetCreate)
        if events is None:
            return None
        for handle in self._handles.values():
            told(pynvml.nvmlDeviceRegisterEvents, handle, pynvml.nvmlEventTypeXidCriticalError, events)
        return events

    def _new_xids(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for _ in range(EVENTS_MAX if self._events is not None else 0):
            event = told(pynvml.nvmlEventSetWait_v2, self._events, 0)
            if event is None:  # no more: NVML calls that a time-out
                break
            uuid = told(pynvml.nvmlDeviceGetUUID, event.device) or ""
            # A card that has fallen off the bus cannot give its name; with a single card there is no doubt.
            if uuid not in self._handles and len(self._handles) == 1:
                uuid = next(iter(self._handles))
            found.setdefault(uuid, []).append(int(event.eventData))
        return found

    def _read_one(self, uuid: str, xids: tuple[int, ...]) -> Reading:
        handle, faults = self._handles[uuid], self._faults[uuid]
        faults.update({f"XID {xid}": None for xid in xids if xid not in APPLICATION_XIDS})
        corrected, uncorrected = (_ecc(handle, kind) for kind in (_CORRECTED, _UNCORRECTED))
        if uncorrected is not None and uncorrected > self._ecc_at_start.setdefault(uuid, uncorrected):
            faults["uncorrectable memory errors"] = None
        if _is_lost(handle):
            faults["the card has fallen off the bus"] = None
        rates = told(pynvml.nvmlDeviceGetUtilizationRates, handle)
        memory = told(pynvml.nvmlDeviceGetMemoryInfo, handle)
        return Reading(
            gpu=self._gpus[uuid],
            utilization=None if rates is None else rates.gpu / 100,
            memory_utilization=None if rates is None else rates.memory / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            temperature_c=told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
            power_mw=told(pynvml.nvmlDeviceGetPowerUsage, handle),
            power_limit_mw=told(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle),
            energy_mj=told(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle),
            ecc_corrected=corrected,
            ecc_uncorrected=uncorrected,
            pcie_sent_bps=_pcie_bps(handle, pynvml.NVML_PCIE_UTIL_TX_BYTES),
            pcie_received_bps=_pcie_bps(handle, pynvml.NVML_PCIE_UTIL_RX_BYTES),
            pcie_replays=told(pynvml.nvmlDeviceGetPcieReplayCounter, handle),
            xids=xids,
            faults=tuple(faults),
        )


def describe(index: int, handle: Any) -> Gpu:
    """What a card is."""
    capability = told(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    memory = told(pynvml.nvmlDeviceGetMemoryInfo, handle)
    cuda = told(pynvml.nvmlSystemGetCudaDriverVersion) or 0
    modes = told(pynvml.nvmlDeviceGetMigMode, handle)
    enabled = modes is not None and modes[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    return Gpu(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        product=str(told(pynvml.nvmlDeviceGetName, handle) or "unknown"),
        brand=BRANDS.get(told(pynvml.nvmlDeviceGetBrand, handle), "Unknown"),
        architecture=ARCHITECTURES.get(told(pynvml.nvmlDeviceGetArchitecture, handle), "Unknown"),
        compute_capability="" if capability is None else f"{capability[0]}.{capability[1]}",
        memory_bytes=0 if memory is None else int(memory.total),
        driver_version=str(told(pynvml.nvmlSystemGetDriverVersion) or ""),
        cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
        pcie_bus_id=_bus_id(handle),
        mig_capable=modes is not None,
        mig_enabled=enabled,
        mig=tuple(_mig_instances(handle)) if enabled else (),
    )


_CORRECTED, _UNCORRECTED = pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED


def told(ask: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where the card or its driver has none."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError:
        return None


def _is_lost(handle: Any) -> bool:
    try:
        pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    except pynvml.NVMLError as error:
        return bool(error.value == pynvml.NVML_ERROR_GPU_IS_LOST)
    return False


def _ecc(handle: Any, kind: int) -> int | None:
    count = told(pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, pynvml.NVML_VOLATILE_ECC)
    return None if count is None else int(count)


def _pcie_bps(handle: Any, direction: int) -> int | None:
    """NVML counts in kB (1024 bytes) per second."""
    rate = told(pynvml.nvmlDeviceGetPcieThroughput, handle, direction)
    return None if rate is None else int(rate) * 1024


def _bus_id(handle: Any) -> str:
    """NVML writes the domain with eight digits, sysfs and Kubernetes with four, and in lower case."""
    info = told(pynvml.nvmlDeviceGetPciInfo, handle)
    if info is None:
        return ""
    text = info.busId if isinstance(info.busId, str) else info.busId.decode()
    domain, _, rest = text.lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def _mig_instances(handle: Any) -> Iterator[MigInstance]:
    count = told(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    for index in range(min(count, MIG_DEVICES_MAX)):
        part = told(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if part is None:  # a place that is free
            continue
        memory = told(pynvml.nvmlDeviceGetMemoryInfo, part)
        size = 0 if memory is None else int(memory.total)
        attributes = told(pynvml.nvmlDeviceGetAttributes, part)
        yield MigInstance(str(pynvml.nvmlDeviceGetUUID(part)), _profile(attributes, size), size)


def _profile(attributes: Any, memory_bytes: int) -> str:
    """Slices of the GPU, and its memory rounded up to whole GB as in NVIDIA's table of profiles."""
    if attributes is None:
        return "unknown"
    compute, gpu = attributes.computeInstanceSliceCount, attributes.gpuInstanceSliceCount
    slices = f"{gpu}g" if compute == gpu else f"{compute}c.{gpu}g"
    return f"{slices}.{-(-memory_bytes // (1 << 30))}gb"
