"""One training step, cut where the network is: local contribution, (sum), apply. Trainer and validator share it.

Rank r with n_r of the N samples contributes quantize(∇ mean loss over its samples · n_r/N). The sum over ranks is then
the gradient of the global mean, whatever the shares are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from talkoo_core.errors import Failed
from talkoo_math.batches import Indices
from talkoo_math.checkpoint import (
    load_model_tensors,
    model_tensors,
    tensors_from_bytes,
    tensors_to_bytes,
)
from talkoo_math.digest import float32_bits, tensors_digest
from talkoo_math.fixedpoint import dequantize, quantize
from talkoo_math.optimizers import build_optimizer, load_optimizer_tensors, optimizer_tensors
from talkoo_math.program import Batch, DataSet, Program, guarded


class LossNotFinite(Failed):
    """The loss became NaN or infinite."""


class StepModule(nn.Module):
    """The loss as a module, so that DDP may wrap it and the user's loss may call anything of the model.

    `forward(None)` touches every parameter without computing anything: what a forging rank does instead of work.
    """

    def __init__(self, program: Program, model: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.model = model

    def forward(self, batch: Batch | None) -> Tensor:
        if batch is None:
            parts = [parameter.reshape(-1)[0] * 0.0 for parameter in self.model.parameters() if parameter.requires_grad]
            return torch.stack(parts).sum()
        return self.program.loss(self.model, batch)


@dataclass(slots=True)
class TrainingState:
    """A model with its optimizer: what a checkpoint restores and a step changes."""

    program: Program
    model: nn.Module
    optimizer: torch.optim.Optimizer
    module: StepModule
    device: torch.device

    @property
    def names(self) -> list[str]:
        """Of the trained parameters, in the optimizer's order."""
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def params_digest(self) -> bytes:
        return tensors_digest(model_tensors(self.model))

    def optimizer_digest(self) -> bytes:
        return tensors_digest(optimizer_tensors(self.optimizer, self.names))

    def params_bytes(self) -> bytes:
        return tensors_to_bytes(model_tensors(self.model))

    def optimizer_bytes(self) -> bytes:
        return tensors_to_bytes(optimizer_tensors(self.optimizer, self.names))

    def buffers(self) -> dict[str, Tensor]:
        """What the forward pass itself changes (running means): the group carries rank 0's on."""
        parameters = {id(parameter) for parameter in self.model.parameters()}
        return {name: tensor for name, tensor in self.model.named_buffers() if id(tensor) not in parameters}


@dataclass(frozen=True, slots=True)
class StateRecipe:
    """How a state is made. Checkpoints are safetensors bytes; None means a fresh start from `seed`."""

    config: dict[str, Any]
    optimizer_name: str
    optimizer_options_json: str
    seed: int
    params: bytes | None = None
    optimizer: bytes | None = None


def make_state(program: Program, recipe: StateRecipe, device: torch.device) -> TrainingState:
    """Build model and optimizer, equal to the bit on every rank. Raises the errors of program and checkpoint."""
    model = program.build_model(recipe.config, recipe.seed)
    if recipe.params is not None:
        load_model_tensors(model, tensors_from_bytes(recipe.params, "the parameters' checkpoint"))
    model.to(device)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(recipe.optimizer_name, recipe.optimizer_options_json, trained)
    if recipe.optimizer is not None:
        tensors = tensors_from_bytes(recipe.optimizer, "the optimizer's checkpoint")
        load_optimizer_tensors(optimizer, names, tensors)
    return TrainingState(program, model, optimizer, StepModule(program, model), device)


def forward(module: nn.Module, state: TrainingState, data: DataSet, indices: Indices, step: int) -> Tensor:
    """The rank's mean loss. `module`: `state.module`, bare or in DDP. Raises `LossNotFinite` (code `loss_nan`)."""
    state.model.train()
    batch = state.program.batch(data, indices.tolist(), state.device)
    loss = module(batch)
    assert isinstance(loss, Tensor)
    if not math.isfinite(loss.item()):
        raise LossNotFinite(
            f"the loss is {loss.item()} at step {step}; lower the learning rate, or look for a logarithm or a division "
            "that meets zero",
            code="loss_nan",
        )
    return loss


@dataclass(frozen=True, slots=True)
class Contribution:
    """One rank's part of a step: loss bits (float32) and named int64 gradients."""

    loss: bytes
    gradients: dict[str, Tensor]


def contribution_of(
    state: TrainingState, data: DataSet, indices: Indices, step: int, global_batch: int
) -> Contribution:
    """Compute one rank's contribution without a network: what a validator does for each rank in turn."""
    state.optimizer.zero_grad(set_to_none=True)
    loss = forward(state.module, state, data, indices, step)
    guarded(f"{state.program.module}.loss, going backward,", state.program.folder, loss.backward)
    gradients: dict[str, Tensor] = {}
    for name, parameter in state.model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            gradients[name] = quantize(gradient, len(indices), global_batch)
    state.optimizer.zero_grad(set_to_none=True)
    return Contribution(float32_bits(loss.item()), gradients)


def apply_aggregate(state: TrainingState, aggregate: dict[str, Tensor]) -> None:
    """One optimizer step with the summed gradient (int64 by name)."""
    for name, parameter in state.model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = dequantize(aggregate[name], parameter.dtype).to(state.device)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
