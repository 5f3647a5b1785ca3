"""What a slot of the node is: a card by NVML, or an honest description of the processor where there is none."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from talkoo_agent.cards import Card
from talkoo_agent.nvml import nvml, told
from talkoo_agent.processor import processor_name

CPU_CORE_POWER_MW = 15_000
"""Declared default for one busy core: a server core with its share of memory and losses draws 5 to 25 W."""


@dataclass(frozen=True, slots=True)
class Device:
    """`kind` is cpu or cuda; `power_mw` is the draw at full load, of one card or of one core."""

    kind: str
    description: str
    memory_bytes: int
    power_mw: int
    power_source: str

    @property
    def backend(self) -> str:
        return "nccl" if self.kind == "cuda" else "gloo"


def find_device(lent: Sequence[Card], declared_power_mw: int = 0, declared_memory_bytes: int = 0) -> Device:
    """What stands on the ledger for each of the cards, which are alike; the processor where none is lent.

    The smallest memory counts. Declared figures win over defaults and lower what is lent, never raise it.
    """
    if lent:
        return _gpu(lent, declared_power_mw, declared_memory_bytes)
    total = int(psutil.virtual_memory().total)
    return Device(
        kind="cpu",
        description=f"{processor_name()}, one core of {psutil.cpu_count() or 1}, {platform.machine()}",
        memory_bytes=min(declared_memory_bytes or total, total),
        power_mw=declared_power_mw or CPU_CORE_POWER_MW,
        power_source="declared",
    )


def _gpu(lent: Sequence[Card], declared_power_mw: int, declared_memory_bytes: int) -> Device:
    least = min(card.memory_bytes for card in lent)
    power_mw, source = _power(lent[0], declared_power_mw)
    return Device(
        kind="cuda",
        description=lent[0].product,
        memory_bytes=min(declared_memory_bytes or least, least),
        power_mw=power_mw,
        power_source=source,
    )


def _power(card: Card, declared_mw: int) -> tuple[int, str]:
    """Milliwatts and their source. A part of a GPU has no limit of its own: so much of the GPU's as of its memory."""
    assert card.gpu is not None
    limit_mw = _told_of(card.gpu.uuid, pynvml.nvmlDeviceGetEnforcedPowerLimit)
    if limit_mw is not None and not card.is_part:
        return limit_mw, "nvml"
    if limit_mw is None or declared_mw:  # some virtual GPUs hide it
        return declared_mw or CPU_CORE_POWER_MW, "declared"
    return round(limit_mw * card.memory_bytes / max(card.gpu.memory_bytes, card.memory_bytes, 1)), "declared"


def _told_of(uuid: str, ask: Callable[[Any], Any]) -> int | None:
    """A figure of a GPU. None where NVML, the GPU or its driver does not tell it."""
    with nvml() as answers:
        handle = told(pynvml.nvmlDeviceGetHandleByUUID, uuid) if answers else None
        figure = None if handle is None else told(ask, handle)
    return None if figure is None else int(figure)


class EnergyMeter:
    """Energy of a piece of work in millijoules: by the counter of its card, else processor time at the declared power.

    Without a card (its UUID) there is no counter to read.
    """

    def __init__(self, device: Device, card: str = "") -> None:
        self._device, self._card = device, card
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
        if not self._card or self._device.power_source != "nvml":  # a part of a GPU has no counter of its own
            return None
        return _told_of(self._card, pynvml.nvmlDeviceGetTotalEnergyConsumption)  # before Volta there is no counter
