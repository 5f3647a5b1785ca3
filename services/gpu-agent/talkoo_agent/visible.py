"""What CUDA shows a process. CUDA reads these variables once, when the process first asks it for anything."""

from __future__ import annotations

VISIBLE = "CUDA_VISIBLE_DEVICES"


def seen_by_cuda(card: str) -> dict[str, str]:
    """Variables of a process that is to see nothing but this card, by its UUID. Without one, none."""
    return {VISIBLE: card, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if card else {}
