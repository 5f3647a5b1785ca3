"""STAND-IN for NVIDIA's driver libraries, for machines without a GPU. NVML answers pynvml's real bindings from a file;
CUDA has no card, and tells which ones it was let to see.

Nothing that was seen with it says how a real card behaves; it shows that we ask NVML rightly and pass on what it says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from talkoo_core.errors import NotFound

LIBRARIES = {"libnvidia-ml.so.1": "stand_in_nvml.c", "libcuda.so.1": "stand_in_cuda.c"}
H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-bc5610b9-79c8-fedd-8899-07539c7f868a",
    "brand": 14,
    "architecture": 9,
    "capability": "9.0",
    "memory_total": 85520809984,
    "memory_used": 1073741824,
    "bus_id": "00000000:64:00.0",
    "utilization": 87,
    "memory_utilization": 41,
    "temperature_c": 61,
    "power_mw": 512300,
    "power_limit_mw": 700000,
    "energy_mj": 5000000,
    "ecc_corrected": 3,
    "ecc_uncorrected": 0,
    "pcie_sent_kbps": 2000,
    "pcie_received_kbps": 3000,
    "pcie_replays": 1,
    "mig_mode": 0,
}
"""As such a card answers, by NVIDIA's documentation of NVML."""


class StandInDriver:
    """The libraries in a folder, and the file that NVML answers from."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise NotFound("no C compiler: the NVML stand-in cannot be built", code="no_compiler")
        self.folder = folder
        self._state = folder / "state.txt"
        self._events: list[str] = []
        for library, source in LIBRARIES.items():
            command = [compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(folder / library)]
            subprocess.run([*command, str(Path(__file__).with_name(source))], check=True, timeout=60)

    @property
    def environment(self) -> dict[str, str]:
        """For a process that is to find it."""
        return {**os.environ, "LD_LIBRARY_PATH": str(self.folder), "STAND_IN_NVML": str(self._state)}

    def cards(self, *cards: dict[str, object]) -> None:
        """What the driver says from now on."""
        lines = ["driver 580.105.08", "cuda 13000", f"count {len(cards)}", *self._events]
        lines += [f"{index}.{name} {value}" for index, card in enumerate(cards) for name, value in card.items()]
        beside = self._state.with_suffix(".new")
        beside.write_text("\n".join(lines) + "\n")
        beside.replace(self._state)

    @property
    def seen(self) -> list[tuple[int, str]]:
        """Process and CUDA_VISIBLE_DEVICES at each initialisation of CUDA, in their order."""
        file = self.folder / "seen.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(process), cards) for process, _, cards in (line.partition(" ") for line in lines)]

    def event(self, card: int, xid: int) -> None:
        """An XID, from the next call of `cards` on."""
        self._events.append(f"event {card} {xid}")
