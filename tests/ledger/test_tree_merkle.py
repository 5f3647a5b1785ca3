"""The state tree against a naive rebuild, its proofs, and the published ICS-23 proof specs."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talkoo_ledger import tree

from talkoo_core.errors import Corrupt

KEYS = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=3)
CONTENTS = st.dictionaries(KEYS, st.binary(max_size=4), max_size=40)
BATCHES = st.lists(st.dictionaries(KEYS, st.none() | st.binary(max_size=4), max_size=20), max_size=6)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def naive_root(leaves: dict[bytes, bytes], bit: int = 0) -> bytes:
    """The definition, bit by bit, from scratch: `leaves` maps key hash to value hash."""
    if not leaves:
        return bytes(32)
    if len(leaves) == 1:
        [(path, value)] = leaves.items()
        return sha(b"\x00" + path + value)
    sides: tuple[dict[bytes, bytes], dict[bytes, bytes]] = ({}, {})
    for path, value in leaves.items():
        sides[path[bit // 8] >> (7 - bit % 8) & 1][path] = value
    return sha(b"\x01" + naive_root(sides[0], bit + 1) + naive_root(sides[1], bit + 1))


def naive(contents: dict[str, bytes]) -> bytes:
    return naive_root({sha(key.encode()): sha(value) for key, value in contents.items()})


@given(BATCHES)
@settings(max_examples=80, deadline=None)
def test_batches_lead_to_the_root_of_a_rebuild(batches: list[dict[str, bytes | None]]) -> None:
    node: tree.Tree = None
    contents: dict[str, bytes] = {}
    for batch in batches:
        node = tree.update(node, batch)
        for key, value in batch.items():
            if value is None:
                contents.pop(key, None)
            else:
                contents[key] = value
        assert tree.root_of(node) == naive(contents)


@given(CONTENTS, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_root_does_not_depend_on_the_order_of_insertion(contents: dict[str, bytes], random: object) -> None:
    keys = list(contents)
    random.shuffle(keys)  # type: ignore[attr-defined]
    node: tree.Tree = None
    for key in keys:
        node = tree.update(node, {key: contents[key]})
    assert tree.root_of(node) == tree.root_of(tree.update(None, contents))


@given(CONTENTS, KEYS)
@settings(max_examples=80, deadline=None)
def test_presence_and_absence_are_proved_and_nothing_else(contents: dict[str, bytes], key: str) -> None:
    node = tree.update(None, contents)
    root, value, proof = tree.root_of(node), contents.get(key), tree.prove(node, key)
    tree.verify(root, key, value, proof)
    wrong = None if value is not None else b"claimed"
    with pytest.raises(Corrupt):
        tree.verify(root, key, wrong, proof)
    with pytest.raises(Corrupt):
        tree.verify(sha(root), key, value, proof)
    if proof.siblings:
        bent = tree.Proof((sha(proof.siblings[0]), *proof.siblings[1:]), proof.other)
        with pytest.raises(Corrupt):
            tree.verify(root, key, value, bent)


def test_absence_is_not_proved_by_the_leaf_itself_or_by_a_stranger() -> None:
    node = tree.update(None, {f"key {i}": b"v" for i in range(50)})
    root = tree.root_of(node)
    present = tree.prove(node, "key 1")
    path = sha(b"key 1")
    with pytest.raises(Corrupt, match="says nothing"):
        tree.verify(root, "key 1", None, tree.Proof(present.siblings, (path, sha(b"v"))))
    with pytest.raises(Corrupt, match="says nothing"):
        tree.verify(root, "key 2", None, tree.Proof(present.siblings, (path, sha(b"v"))))


def ics23_root(spec: dict[str, object], key: bytes, value: bytes, path: list[tuple[bytes, bytes]]) -> bytes:
    """ICS-23's existence root, computed from the published spec alone. `path`: (prefix, suffix) from the leaf up."""
    leaf = spec["leaf_spec"]
    assert isinstance(leaf, dict)
    key = sha(key) if leaf["prehash_key"] == "SHA256" else key
    value = sha(value) if leaf["prehash_value"] == "SHA256" else value
    if leaf["length"] == "VAR_PROTO":
        key, value = bytes([len(key)]) + key, bytes([len(value)]) + value
    node = sha(bytes.fromhex(str(leaf["prefix"])) + key + value)
    for prefix, suffix in path:
        assert prefix[:1] != bytes.fromhex(str(leaf["prefix"])), "an inner node is no leaf"
        node = sha(prefix + node + suffix)
    return node


def test_published_specs_verify_a_value_up_to_the_app_hash() -> None:
    contents = {f"key {i}": f"value {i}".encode() for i in range(100)}
    node = tree.update(None, contents)
    roots = {"accounts": tree.root_of(node), "nodes": bytes(32), "tasks": sha(b"t")}
    proof, depth = tree.prove(node, "key 7"), len(tree.prove(node, "key 7").siblings)
    turns = tree.bitmap("key 7", depth)
    path = []
    for level, sibling in enumerate(proof.siblings):
        bit = depth - 1 - level
        right = turns[bit // 8] >> (7 - bit % 8) & 1
        path.append((b"\x01" + sibling, b"") if right else (b"\x01", sibling))
    smt, tendermint = tree.PROOF_SPECS
    assert ics23_root(smt, b"key 7", b"value 7", path) == roots["accounts"]
    aunts = tree.prove_module(roots, "accounts").aunts
    up = [(b"\x01", aunt) for aunt in aunts]  # index 0 goes left all the way
    assert ics23_root(tendermint, b"accounts", roots["accounts"], up) == tree.app_hash(roots)


@pytest.mark.parametrize("count", range(1, 14))
def test_every_module_is_proved_and_a_wrong_place_is_not(count: int) -> None:
    roots = {f"m{i:02d}": sha(bytes([i])) for i in range(count)}
    app = tree.app_hash(roots)
    for name, root in roots.items():
        proof = tree.prove_module(roots, name)
        tree.verify_module(app, name, root, proof)
        for wrong in (
            tree.ModuleProof(proof.index + 1, proof.total, proof.aunts),
            tree.ModuleProof(proof.index, proof.total, (*proof.aunts, root)),
        ):
            with pytest.raises(Corrupt):
                tree.verify_module(app, name, root, wrong)
        with pytest.raises(Corrupt):
            tree.verify_module(app, name, sha(root), proof)


def test_update_of_one_key_keeps_all_other_branches() -> None:
    node = tree.update(None, {str(i): b"v" for i in range(1_000)})
    changed = tree.update(node, {"7": b"w"})
    assert isinstance(node, tree.Inner)
    assert isinstance(changed, tree.Inner)
    path = int.from_bytes(sha(b"7"), "big")
    kept = (node.left, changed.left) if path >> 255 else (node.right, changed.right)
    assert kept[0] is kept[1]
