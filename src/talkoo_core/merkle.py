"""RFC 6962 Merkle trees over byte strings, exactly as CometBFT's crypto/merkle: leaf prefix 0, inner prefix 1."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
MAX_AUNTS = 100
"""As CometBFT: a proof longer than this is refused before it is walked."""


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def inner_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def split_point(length: int) -> int:
    """The largest power of two below `length` (which is at least 2)."""
    assert length > 1
    return 1 << ((length - 1).bit_length() - 1)


def hash_from_byte_slices(leaves: Sequence[bytes]) -> bytes:
    """The root over leaves in order; SHA-256 of nothing for no leaves."""
    if not leaves:
        return EMPTY_ROOT
    return _root([leaf_hash(leaf) for leaf in leaves])


def _root(hashes: list[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    split = split_point(len(hashes))
    return inner_hash(_root(hashes[:split]), _root(hashes[split:]))


@dataclass(frozen=True, slots=True)
class Proof:
    """That a leaf stands at `index` of a tree of `total`. `aunts`: sibling hashes from the leaf's level upward."""

    total: int
    index: int
    leaf_hash: bytes
    aunts: tuple[bytes, ...]

    def root(self) -> bytes | None:
        """The root this proof leads to, or None when its shape is impossible."""
        if not 0 <= self.index < self.total or len(self.aunts) > MAX_AUNTS:
            return None
        return _root_from_aunts(self.index, self.total, self.leaf_hash, self.aunts)

    def verify(self, root: bytes, leaf: bytes) -> bool:
        return self.leaf_hash == leaf_hash(leaf) and self.root() == root


def _root_from_aunts(index: int, total: int, leaf: bytes, aunts: tuple[bytes, ...]) -> bytes | None:
    if total == 1:
        return leaf if not aunts else None
    if not aunts:
        return None
    left_count = split_point(total)
    if index < left_count:
        left = _root_from_aunts(index, left_count, leaf, aunts[:-1])
        return None if left is None else inner_hash(left, aunts[-1])
    right = _root_from_aunts(index - left_count, total - left_count, leaf, aunts[:-1])
    return None if right is None else inner_hash(aunts[-1], right)


def proofs_from_byte_slices(leaves: Sequence[bytes]) -> tuple[bytes, list[Proof]]:
    """The root and a proof for every leaf."""
    hashes = [leaf_hash(leaf) for leaf in leaves]
    aunts: list[list[bytes]] = [[] for _ in leaves]

    def walk(first: int, behind: int) -> bytes:
        if behind - first == 1:
            return hashes[first]
        middle = first + split_point(behind - first)
        left, right = walk(first, middle), walk(middle, behind)
        for index in range(first, middle):
            aunts[index].append(right)
        for index in range(middle, behind):
            aunts[index].append(left)
        return inner_hash(left, right)

    root = walk(0, len(leaves)) if leaves else EMPTY_ROOT
    return root, [Proof(len(leaves), i, hashes[i], tuple(aunts[i])) for i in range(len(leaves))]
