"""Figures of many measurements, as the benchmarks say them."""

from __future__ import annotations

from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """n, p50, p95, p99 and the largest."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)

    return {"n": len(ordered), "p50": at(0.50), "p95": at(0.95), "p99": at(0.99), "max": round(ordered[-1], 4)}
