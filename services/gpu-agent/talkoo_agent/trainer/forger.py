"""A cheat, kept for demonstrations and for the tests of the audit: it says it worked and did not.

It sends a made-up contribution that looks plausible (its last honest gradient, shrinking; small noise where there is
none) and a transcript that is consistent with what it sent. Nothing but computing the step again can tell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from talkoo_math.digest import float32_bits, float32_of_bits

SHRINK_NUMERATOR, SHRINK_DENOMINATOR = 15, 16
FIRST_LOSS = 2.0


class Forger:
    def __init__(self, model: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._gradients: dict[str, Tensor] = {
            name: torch.randint(-(1 << 20), 1 << 20, parameter.shape, generator=generator)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._loss = float32_bits(FIRST_LOSS)

    def learn(self, contribution: dict[str, Tensor], loss: bytes) -> None:
        """Remember an honest step, to imitate it later."""
        self._gradients = {name: tensor.clone().cpu() for name, tensor in contribution.items()}
        self._loss = loss

    def next_contribution(self) -> dict[str, Tensor]:
        self._gradients = {
            name: torch.div(tensor * SHRINK_NUMERATOR, SHRINK_DENOMINATOR, rounding_mode="floor")
            for name, tensor in self._gradients.items()
        }
        return self._gradients

    def next_loss(self) -> bytes:
        self._loss = float32_bits(float32_of_bits(self._loss) * SHRINK_NUMERATOR / SHRINK_DENOMINATOR)
        return self._loss
