"""Programs as a user would write them, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from talkoo_math.determinism import make_deterministic

PROGRAM = """
import torch
from torch import nn

def build_model(config):
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))

class Data:
    def __len__(self):
        return 50
    def batch(self, indices):
        rows = torch.tensor(indices, dtype=torch.float32).reshape(-1, 1) / 50
        return torch.cat([rows, rows**2, 1 - rows, rows * 3], dim=1), (rows.reshape(-1) > 0.5).long()

def open_data(path, split):
    return Data()

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def correct(model, batch):
    return int((model(batch[0]).argmax(1) == batch[1]).sum())

def predict(model, inputs):
    return [int(row.argmax()) for row in model(torch.tensor(inputs))]
"""


@pytest.fixture(scope="session", autouse=True)
def _deterministic() -> None:
    make_deterministic()


@pytest.fixture
def program_text() -> str:
    return PROGRAM


@pytest.fixture
def program_folder(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "mine.py").write_text(text)
        (tmp_path / "data.bin").write_bytes(b"data")
        return tmp_path

    return write
