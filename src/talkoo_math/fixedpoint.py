"""Fixed point: gradients become integers before they are summed, so a sum has the same bits in every order.

A real number x is carried as round(x · 2^k), half to even, in int64. Integer addition is associative, so any all-reduce
algorithm, on any machine, gives the same aggregate, and a validator may compare by equality (DESIGN decision 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from talkoo_core.errors import Failed

FRACTION_BITS = 32
"""k: the least step is 2^-32, about 2.3e-10."""

MAX_MAGNITUDE_BITS = 47
"""One contribution stays within ±2^47 (±32,768 as a real number)."""

MAX_RANKS = 1 << 15
"""2^15 contributions of 2^47 stay below 2^62: a sum never wraps."""


class NotQuantizable(Failed):
    """A gradient holds NaN, an infinity, or a value too large for fixed point."""


def quantize(values: Tensor, weight_numerator: int = 1, weight_denominator: int = 1) -> Tensor:
    """Fixed point of `values · weight_numerator / weight_denominator`, as int64 of the same shape, contiguous.

    The product is taken in float64 and rounded once, half to even: IEEE 754 gives the same bits everywhere.
    Raises `NotQuantizable` (codes `gradient_nan`, `gradient_overflow`); nothing is ever clipped silently.
    """
    factor = (weight_numerator / weight_denominator) * float(1 << FRACTION_BITS)
    scaled = values.detach().to(torch.float64).contiguous() * factor
    if not bool(torch.isfinite(scaled).all()):
        raise NotQuantizable(
            "a gradient holds NaN or infinity; lower the learning rate or check the loss for a division by zero",
            code="gradient_nan",
        )
    rounded = torch.round(scaled)
    if rounded.numel() and float(rounded.abs().max()) > float(1 << MAX_MAGNITUDE_BITS):
        limit = 1 << (MAX_MAGNITUDE_BITS - FRACTION_BITS)
        raise NotQuantizable(
            f"a gradient is larger than {limit:,}, the most that fixed point carries; lower the learning rate or "
            "scale the loss",
            code="gradient_overflow",
        )
    return rounded.to(torch.int64)


def dequantize(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The real numbers that int64 fixed point stands for: exact in float64, then rounded once to `dtype`."""
    return (values.to(torch.float64) * (1.0 / float(1 << FRACTION_BITS))).to(dtype)


def sum_contributions(contributions: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Add named int64 tensors of several ranks; the order of ranks does not matter, to the last bit."""
    assert 0 < len(contributions) <= MAX_RANKS
    total = {name: tensor.clone() for name, tensor in contributions[0].items()}
    for contribution in contributions[1:]:
        assert contribution.keys() == total.keys()
        for name, tensor in contribution.items():
            total[name] += tensor
    return total
