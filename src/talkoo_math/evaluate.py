"""Held-out quality as two integers, so that validators can agree on it by equality."""

from __future__ import annotations

import torch

from talkoo_math.program import DataSet
from talkoo_math.step import TrainingState

BATCH = 256
"""Fixed: the batch's size may change the last bits of a score and so, rarely, an answer."""


def evaluate(state: TrainingState, data: DataSet) -> tuple[int, int]:
    """(correct, total) of the model in evaluation mode over a whole data set, in order."""
    state.model.eval()
    correct = 0
    with torch.no_grad():
        for first in range(0, len(data), BATCH):
            indices = list(range(first, min(first + BATCH, len(data))))
            correct += state.program.correct(state.model, state.program.batch(data, indices, state.device))
    state.model.train()
    return correct, len(data)
