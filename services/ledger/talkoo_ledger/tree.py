"""Authenticated state: one compressed sparse Merkle tree per module, and a Merkle map of the modules above them.

A module's tree (the shape of ICS-23's `SmtSpec`): the path of a key is SHA-256(key), most significant bit first;
leaf = SHA-256(0x00 ‖ SHA-256(key) ‖ SHA-256(value)), inner = SHA-256(0x01 ‖ left ‖ right), an empty subtree is 32 zero
bytes, and a subtree that holds a single leaf *is* that leaf. So the root depends on the contents alone.

The map of modules (ICS-23's `TendermintSpec`, a Cosmos multistore): RFC 6962 tree over the modules in name order,
leaf = SHA-256(0x00 ‖ len ‖ name ‖ 0x20 ‖ SHA-256(root)). Its root is the app hash.

Nodes are immutable, so an older root stays readable while the next block is applied.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from msgspec import Struct

from talkoo_core.errors import Corrupt

HASH_BYTES = 32
DEPTH_BITS = 256
EMPTY = bytes(HASH_BYTES)

PROOF_SPECS: tuple[dict[str, object], dict[str, object]] = (
    {  # ics23.SmtSpec
        "leaf_spec": {
            "hash": "SHA256",
            "prehash_key": "SHA256",
            "prehash_value": "SHA256",
            "length": "NO_PREFIX",
            "prefix": "00",
        },
        "inner_spec": {
            "child_order": [0, 1],
            "child_size": 32,
            "min_prefix_length": 1,
            "max_prefix_length": 1,
            "empty_child": EMPTY.hex(),
            "hash": "SHA256",
        },
        "max_depth": 256,
        "prehash_key_before_comparison": True,
    },
    {  # ics23.TendermintSpec
        "leaf_spec": {
            "hash": "SHA256",
            "prehash_key": "NO_HASH",
            "prehash_value": "SHA256",
            "length": "VAR_PROTO",
            "prefix": "00",
        },
        "inner_spec": {
            "child_order": [0, 1],
            "child_size": 32,
            "min_prefix_length": 1,
            "max_prefix_length": 1,
            "hash": "SHA256",
        },
    },
)
"""The two proof specs of a state proof, from the value up: what an ICS-23 light client is given."""


class Leaf(Struct, frozen=True, gc=False):
    """A key that is present. `path` is the key's hash as a number of 256 bits."""

    path: int
    value_hash: bytes
    hash: bytes
    key: str


class Inner(Struct, frozen=True, gc=False):
    """At least two keys below."""

    left: Tree
    right: Tree
    hash: bytes


Tree = Leaf | Inner | None
"""None is the empty tree."""


@dataclass(frozen=True, slots=True)
class Proof:
    """That a key has a value, or that it has none, under a module's root.

    `siblings` go from the deepest level to the root. For absence `other` is the (key hash, value hash) of the leaf that
    stands in the key's place, or None where the place is empty.
    """

    siblings: tuple[bytes, ...]
    other: tuple[bytes, bytes] | None = None


@dataclass(frozen=True, slots=True)
class ModuleProof:
    """That a module's root is in the map of modules: RFC 6962 aunts, from the leaf up."""

    index: int
    total: int
    aunts: tuple[bytes, ...]


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def root_of(tree: Tree) -> bytes:
    return EMPTY if tree is None else tree.hash


def make_leaf(key: str, value: bytes) -> Leaf:
    path, value_hash = sha256(key.encode()), sha256(value)
    return Leaf(int.from_bytes(path, "big"), value_hash, _leaf_hash(path, value_hash), key)


def update(tree: Tree, changes: Mapping[str, bytes | None]) -> Tree:
    """The tree with keys set, or removed where the value is None. Cost: O(changes * log size)."""
    leaves: list[tuple[int, Leaf | None]] = []
    for key, value in changes.items():
        if value is None:
            leaves.append((int.from_bytes(sha256(key.encode()), "big"), None))
        else:
            leaf = make_leaf(key, value)
            leaves.append((leaf.path, leaf))
    return _Changes(leaves).apply(tree, 0, len(leaves), DEPTH_BITS - 1)


def prove(tree: Tree, key: str) -> Proof:
    """A proof that the key is there, or that it is not."""
    path = int.from_bytes(sha256(key.encode()), "big")
    siblings: list[bytes] = []
    bit = DEPTH_BITS - 1
    while isinstance(tree, Inner):
        near, far = (tree.right, tree.left) if path >> bit & 1 else (tree.left, tree.right)
        siblings.append(root_of(far))
        tree, bit = near, bit - 1
    siblings.reverse()
    if tree is None or tree.path == path:
        return Proof(tuple(siblings))
    return Proof(tuple(siblings), (tree.path.to_bytes(HASH_BYTES, "big"), tree.value_hash))


def neighbours(tree: Tree, key: str) -> tuple[Leaf | None, Leaf | None]:
    """The leaves right before and right behind a key that is not there, in the order of paths; None at an edge."""
    path = int.from_bytes(sha256(key.encode()), "big")
    before: Tree = None
    behind: Tree = None
    bit = DEPTH_BITS - 1
    while isinstance(tree, Inner):
        if path >> bit & 1:
            before, tree = (before if tree.left is None else tree.left), tree.right
        else:
            behind, tree = (behind if tree.right is None else tree.right), tree.left
        bit -= 1
    if tree is not None:
        assert tree.path != path, "the key is there"
        before, behind = (tree, behind) if tree.path < path else (before, tree)
    return _edge(before, last=True), _edge(behind, last=False)


def _edge(tree: Tree, *, last: bool) -> Leaf | None:
    """The first or last leaf of a tree."""
    while isinstance(tree, Inner):
        near, far = (tree.right, tree.left) if last else (tree.left, tree.right)
        tree = far if near is None else near
    return tree


def verify(root: bytes, key: str, value: bytes | None, proof: Proof) -> None:
    """Check a proof; `value` None claims absence. Raises Corrupt (code `bad_proof`)."""
    path = sha256(key.encode())
    number = int.from_bytes(path, "big")
    depth = len(proof.siblings)
    if depth > DEPTH_BITS:
        raise Corrupt(f"the proof of {key!r} is deeper than {DEPTH_BITS} levels", code="bad_proof")
    if value is not None:
        node = _leaf_hash(path, sha256(value))
    elif proof.other is None:
        node = EMPTY
    else:
        other = int.from_bytes(proof.other[0], "big")
        shared = depth == 0 or (other ^ number) >> (DEPTH_BITS - depth) == 0
        if other == number or not shared:
            raise Corrupt(f"the proof shows a leaf that says nothing about {key!r}", code="bad_proof")
        node = _leaf_hash(*proof.other)
    for level, sibling in enumerate(proof.siblings):
        right = number >> (DEPTH_BITS - depth + level) & 1
        node = _inner_hash(sibling, node) if right else _inner_hash(node, sibling)
    if node != root:
        raise Corrupt(f"the proof of {key!r} does not lead to the module's root", code="bad_proof")


def bitmap(key: str, depth: int) -> bytes:
    """The first `depth` turns of a key's path, most significant bit first: 1 goes right."""
    return sha256(key.encode())[: (depth + 7) // 8]


def module_leaf(name: str, root: bytes) -> bytes:
    """The bytes under the leaf prefix: VAR_PROTO lengths, then name and SHA-256(root)."""
    raw = name.encode()
    assert len(raw) < 0x80, "a module's name fits a one-byte varint"
    return bytes([len(raw)]) + raw + bytes([HASH_BYTES]) + sha256(root)


def app_hash(roots: Mapping[str, bytes]) -> bytes:
    """Root of the map of modules."""
    leaves = [sha256(b"\x00" + module_leaf(name, roots[name])) for name in sorted(roots)]
    return _range_root(leaves)


def prove_module(roots: Mapping[str, bytes], name: str) -> ModuleProof:
    names = sorted(roots)
    leaves = [sha256(b"\x00" + module_leaf(each, roots[each])) for each in names]
    index = names.index(name)
    return ModuleProof(index, len(names), tuple(_aunts(leaves, index)))


def turns_of(index: int, total: int) -> list[bool]:
    """For a leaf of an RFC 6962 tree, from the leaf up: whether it lies right of the aunt."""
    turns = []
    while total > 1:
        k = _split(total)
        right = index >= k
        turns.append(right)
        index, total = (index - k, total - k) if right else (index, k)
    return turns[::-1]


def verify_module(app: bytes, name: str, root: bytes, proof: ModuleProof) -> None:
    """Check that a module's root is under the app hash. Raises Corrupt (code `bad_proof`)."""
    node = sha256(b"\x00" + module_leaf(name, root))
    if not 0 <= proof.index < proof.total:
        raise Corrupt(f"the proof of module {name!r} has no such index", code="bad_proof")
    computed = _climb(node, proof.index, proof.total, list(proof.aunts))
    if computed != app:
        raise Corrupt(f"the proof of module {name!r} does not lead to the app hash", code="bad_proof")


def _leaf_hash(path: bytes, value_hash: bytes) -> bytes:
    return sha256(b"\x00" + path + value_hash)


def _inner_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right)


class _Changes:
    """Leaves to set (None: to remove) by path, in order of their paths."""

    __slots__ = ("leaves", "paths")

    def __init__(self, changes: Iterable[tuple[int, Leaf | None]]) -> None:
        ordered = sorted(changes, key=_path_of)
        self.paths = [path for path, _ in ordered]
        self.leaves = [leaf for _, leaf in ordered]

    def apply(self, tree: Tree, low: int, high: int, bit: int) -> Tree:
        """A node with the changes from `low` to before `high` made below it; its next turn is `bit` of the path."""
        if low == high:
            return tree
        if isinstance(tree, Inner):
            middle = self._middle(low, high, bit)
            return _join(self.apply(tree.left, low, middle, bit - 1), self.apply(tree.right, middle, high, bit - 1))
        if tree is not None and not self._touch(tree.path, low, high):
            around = [*zip(self.paths[low:high], self.leaves[low:high], strict=True), (tree.path, tree)]
            return _Changes(around).build(0, len(around), bit)
        return self.build(low, high, bit)

    def build(self, low: int, high: int, bit: int) -> Tree:
        """The tree of these leaves alone."""
        if high - low > 1:
            middle = self._middle(low, high, bit)
            return _join(self.build(low, middle, bit - 1), self.build(middle, high, bit - 1))
        return self.leaves[low] if low < high else None

    def _middle(self, low: int, high: int, bit: int) -> int:
        """Where the paths begin that go right at `bit`; those before it they share."""
        return bisect_left(self.paths, (self.paths[low] >> bit | 1) << bit, low, high)

    def _touch(self, path: int, low: int, high: int) -> bool:
        place = bisect_left(self.paths, path, low, high)
        return place < high and self.paths[place] == path


def _path_of(change: tuple[int, Leaf | None]) -> int:
    return change[0]


def _join(left: Tree, right: Tree) -> Tree:
    """An inner node, or the only leaf below it."""
    if left is None and not isinstance(right, Inner):
        return right
    if right is None and not isinstance(left, Inner):
        return left
    return Inner(left, right, _inner_hash(root_of(left), root_of(right)))


def _split(total: int) -> int:
    """The largest power of two smaller than `total` (RFC 6962, section 2.1)."""
    return 1 << (total - 1).bit_length() - 1


def _range_root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return _inner_hash(_range_root(leaves[:k]), _range_root(leaves[k:]))


def _aunts(leaves: list[bytes], index: int) -> Iterable[bytes]:
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*_aunts(leaves[:k], index), _range_root(leaves[k:])]
    return [*_aunts(leaves[k:], index - k), _range_root(leaves[:k])]


def _climb(leaf: bytes, index: int, total: int, aunts: list[bytes]) -> bytes | None:
    """The root that the aunts lead to, or None when their number does not fit."""
    if total == 1:
        return leaf if not aunts else None
    if not aunts:
        return None
    k, last = _split(total), aunts[-1]
    if index < k:
        left = _climb(leaf, index, k, aunts[:-1])
        return None if left is None else _inner_hash(left, last)
    right = _climb(leaf, index - k, total - k, aunts[:-1])
    return None if right is None else _inner_hash(last, right)
