"""SHA-256 of named tensors in one canonical order, so that equal tensors have equal digests on every machine."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

assert sys.byteorder == "little", "Talkoo's tensor digests are taken over little-endian memory"

_VIEW_AS = {torch.bfloat16: torch.int16}
"""Types that numpy does not know, read as integers of the same width."""


def tensor_bytes(tensor: Tensor) -> bytes | memoryview:
    """Row-major little-endian bytes of a tensor of any device and any strides."""
    flat = tensor.detach().to("cpu").contiguous()
    if flat.dtype in _VIEW_AS:
        flat = flat.view(_VIEW_AS[flat.dtype])
    return flat.reshape(-1).numpy().data.cast("B") if flat.numel() else b""


def tensors_digest(tensors: Mapping[str, Tensor]) -> bytes:
    """32 bytes: SHA-256 over each tensor's name, dtype, shape and bytes, by name in code point order.

    Every variable part is preceded by its length (u32, little-endian), so moving a border changes the digest.
    """
    state = hashlib.sha256(b"talkoo/tensors/v1")
    state.update(struct.pack("<I", len(tensors)))
    for name in sorted(tensors):
        tensor = tensors[name]
        encoded, dtype = name.encode(), str(tensor.dtype).removeprefix("torch.").encode()
        state.update(struct.pack("<I", len(encoded)) + encoded)
        state.update(struct.pack("<I", len(dtype)) + dtype)
        state.update(struct.pack(f"<I{tensor.dim()}Q", tensor.dim(), *tensor.shape))
        state.update(tensor_bytes(tensor))
    return state.digest()


def indices_digest(indices: npt.NDArray[np.int64]) -> bytes:
    """32 bytes: SHA-256 of one rank's sample numbers (int64, little-endian) in the order they are used."""
    return hashlib.sha256(b"talkoo/batch/v1" + indices.astype("<i8").tobytes()).digest()


def float32_bits(value: float) -> bytes:
    """The four little-endian bytes of a float32: how a loss is compared, never by tolerance."""
    return struct.pack("<f", value)


def float32_of_bits(bits: bytes) -> float:
    return float(struct.unpack("<f", bits)[0])
