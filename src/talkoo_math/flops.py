"""Floating-point operations of one sample, forward and backward: an integer that every party counts alike."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from talkoo_math.program import DataSet
from talkoo_math.step import TrainingState

COUNTED_SAMPLES = 2
"""Batch normalization refuses a batch of one."""


def flops_per_sample(state: TrainingState, data: DataSet) -> int:
    """Count matrix products, convolutions and attention by shape, with torch's own formulas.

    A model without any of them is counted at two operations for each parameter, forward and twice backward (6 · P).
    The gradient is thrown away; parameters and buffers stay as they were.
    """
    buffers = {name: tensor.clone() for name, tensor in state.buffers().items()}
    indices = [position % len(data) for position in range(COUNTED_SAMPLES)]
    batch = state.program.batch(data, indices, state.device)
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        state.module(batch).backward()
    state.optimizer.zero_grad(set_to_none=True)
    for name, tensor in state.buffers().items():
        tensor.copy_(buffers[name])
    counted = counter.get_total_flops() // COUNTED_SAMPLES
    return counted or 6 * sum(parameter.numel() for parameter in state.model.parameters())
