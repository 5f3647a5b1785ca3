"""Handwritten digits: a small convolutional network reads 8 by 8 pictures (scikit-learn's digits, 1,797 samples).

This file is all that Talkoo asks of a model builder:

    build_model(config)          a torch module; `config` is `program.config` of task.yaml
    open_data(path, split)       the data, "train" or "heldout": len(data) and data.batch(indices) -> tuple of tensors
    loss(model, batch)           the mean loss over the batch
    correct(model, batch)        how many of the batch are right
    predict(model, inputs)       answers requests: JSON in, JSON out
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SIDE, CLASSES, BRIGHTEST = 8, 10, 16.0
PIXELS = SIDE * SIDE
HELDOUT_EVERY = 5  # every fifth sample is held out


def build_model(config: dict[str, Any]) -> nn.Module:
    channels = int(config.get("channels", 16))
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * PIXELS // 4, CLASSES),
    )


class Digits:
    def __init__(self, pictures: Tensor, labels: Tensor) -> None:
        self.pictures, self.labels = pictures, labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.pictures[indices], self.labels[indices]


def open_data(path: Path, split: str) -> Digits:
    with np.load(path, allow_pickle=False) as file:
        pictures = torch.from_numpy(file["pictures"].astype(np.float32)) / BRIGHTEST
        labels = torch.from_numpy(file["labels"].astype(np.int64))
    held_out = torch.arange(len(labels)) % HELDOUT_EVERY == HELDOUT_EVERY - 1
    chosen = held_out if split == "heldout" else ~held_out
    return Digits(pictures[chosen], labels[chosen])


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    pictures, labels = batch
    return nn.functional.cross_entropy(model(pictures), labels)


def correct(model: nn.Module, batch: tuple[Tensor, Tensor]) -> int:
    pictures, labels = batch
    return int((model(pictures).argmax(dim=1) == labels).sum())


def predict(model: nn.Module, inputs: list[Any]) -> list[Any]:
    """Each input: 64 brightnesses from 0 to 16, row by row. Each answer: the digit and how sure the model is."""
    pictures = torch.tensor(inputs, dtype=torch.float32).reshape(-1, PIXELS) / BRIGHTEST
    chances = model(pictures).softmax(dim=1)
    return [{"digit": int(row.argmax()), "chance": round(float(row.max()), 4)} for row in chances]
