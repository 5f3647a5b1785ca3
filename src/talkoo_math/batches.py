"""Which samples each rank sees: a pure function of the beacon, so nobody can choose or foresee the data order.

One *pass* over the data set is a pseudo-random permutation of 0 … n - 1, evaluated point by point (never stored): a
balanced Feistel network over the smallest even-bit domain ≥ n, walked until it lands inside (cycle walking; Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002, method 2). Round keys are SHA-256 of (beacon, segment, pass).
Position p of a segment is the permutation of pass ⌊p/n⌋ at p mod n, so within a pass no sample is seen twice.
Nobody can influence the beacon, so the round function only needs to mix well: it is splitmix64's finalizer.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ROUNDS = 6
Indices = npt.NDArray[np.int64]


def _round_keys(beacon: bytes, segment: int, pass_number: int) -> npt.NDArray[np.uint64]:
    material = b"talkoo/order/v1" + beacon + struct.pack("<QQ", segment, pass_number)
    digest = hashlib.sha256(material).digest() + hashlib.sha256(material + b"+").digest()
    return np.frombuffer(digest, dtype="<u8")[:ROUNDS]


def _mix(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """splitmix64's finalizer over value + key (Steele, Lea, Flood 2014); arithmetic is modulo 2^64."""
    z = values + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _feistel(values: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], half_bits: int) -> npt.NDArray[np.uint64]:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right, key) & mask)
    return (left << shift) | right


def _permute(positions: npt.NDArray[np.uint64], size: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    out = _feistel(positions, keys, half_bits)
    outside = out >= size
    while outside.any():  # ends: the walk follows a cycle of a permutation that starts inside
        out[outside] = _feistel(out[outside], keys, half_bits)
        outside = out >= size
    return out


def sample_indices(
    beacon: bytes, segment: int, step_in_segment: int, dataset_size: int, shares: Sequence[int]
) -> tuple[Indices, ...]:
    """Per rank, the sample numbers (int64, shape [shares[rank]]) of one step.

    `beacon`: 32 bytes; `step_in_segment`: 0-based; `shares`: samples of each rank, their sum is the global batch.
    """
    assert len(beacon) == 32
    assert dataset_size >= 1
    assert segment >= 0
    assert step_in_segment >= 0
    assert min(shares) >= 1
    global_batch = sum(shares)
    first = step_in_segment * global_batch
    positions = np.arange(first, first + global_batch, dtype=np.uint64)
    passes = positions // np.uint64(dataset_size)
    out = np.empty(global_batch, dtype=np.int64)
    for pass_number in np.unique(passes):
        chosen = passes == pass_number
        keys = _round_keys(beacon, segment, int(pass_number))
        out[chosen] = _permute(positions[chosen] % np.uint64(dataset_size), dataset_size, keys).astype(np.int64)
    borders = np.cumsum(shares)[:-1]
    return tuple(np.split(out, borders))
