"""The processor's name as the operating system gives it; part of the hardware class."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """Model name with family, model and stepping, since one name may cover several cores ("AMD EPYC" does)."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or "unknown"
    first = text.split("\n\n", 1)[0]
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    name = values.get("model name") or values.get("Processor") or platform.processor() or "unknown"
    numbers = "-".join(values[key] for key in ("cpu family", "model", "stepping") if key in values)
    return f"{name} {numbers}".strip()
