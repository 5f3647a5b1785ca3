"""State proofs in the form of ICS-23, which any light client that knows the two specs of `tree.PROOF_SPECS` verifies.

A proof has two steps, as in a Cosmos multistore: `ics23:smt` leads from the value, or from the absence of one, to the
root of its module's tree (SmtSpec), `ics23:simple` from there to the app hash (TendermintSpec), which stands in the
header of the next block. Absence is shown by the two neighbours of the key in the order of SHA-256(key).

One thing is our own: ICS-23 cannot show that a key is absent from an empty tree. There the first step is a
non-existence proof without neighbours, which holds exactly when the module's root is 32 zero bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from talkoo_api.ics23.v1 import ics23_pb2 as pb

from talkoo_core.errors import Corrupt
from talkoo_ledger import tree
from talkoo_ledger.application import Application

SMT = "ics23:smt"
SIMPLE = "ics23:simple"
MAX_PROOF_BYTES = 64 * 1024
"""Two paths of 256 levels with two values of a few hundred bytes are well below this."""
MAX_VALUE_BYTES = 1 << 20
SMT_LEAF = pb.LeafOp(
    hash=pb.SHA256, prehash_key=pb.SHA256, prehash_value=pb.SHA256, length=pb.NO_PREFIX, prefix=b"\x00"
)
SIMPLE_LEAF = pb.LeafOp(
    hash=pb.SHA256, prehash_key=pb.NO_HASH, prehash_value=pb.SHA256, length=pb.VAR_PROTO, prefix=b"\x00"
)
_INNER = b"\x01"


@dataclass(frozen=True, slots=True)
class ProofOp:
    """One step of a proof, from the value towards the root, as CometBFT's `merkle.ProofOp`."""

    type: str
    key: bytes
    data: bytes


# Making proofs


def state_proof_ops(application: Application, module: str, key: str) -> tuple[ProofOp, ProofOp]:
    """That a key has its committed value, or none. Raises InvalidInput (code `unknown_module`)."""
    roots = application.module_roots()
    found = application.query(module, key)
    module_proof = tree.prove_module(roots, module)
    turns = tree.turns_of(module_proof.index, module_proof.total)
    simple = pb.CommitmentProof(
        exist=pb.ExistenceProof(
            key=module.encode(),
            value=roots[module],
            leaf=SIMPLE_LEAF,
            path=[_inner(aunt, right) for aunt, right in zip(module_proof.aunts, turns, strict=True)],
        )
    )
    if found.value is None:
        smt = pb.CommitmentProof(nonexist=_absence(application, module, key))
    else:
        smt = pb.CommitmentProof(exist=_existence(application, module, key))
    return (
        ProofOp(SMT, key.encode(), smt.SerializeToString(deterministic=True)),
        ProofOp(SIMPLE, module.encode(), simple.SerializeToString(deterministic=True)),
    )


def _existence(application: Application, module: str, key: str) -> pb.ExistenceProof:
    value = application.query(module, key).value
    assert value is not None, "the key is there"
    siblings = tree.prove(application.tree_of(module), key).siblings
    path, depth = int.from_bytes(tree.sha256(key.encode()), "big"), len(siblings)
    turns = [bool(path >> (tree.DEPTH_BITS - depth + level) & 1) for level in range(depth)]
    steps = [_inner(sibling, right) for sibling, right in zip(siblings, turns, strict=True)]
    return pb.ExistenceProof(key=key.encode(), value=value, leaf=SMT_LEAF, path=steps)


def _absence(application: Application, module: str, key: str) -> pb.NonExistenceProof:
    left, right = tree.neighbours(application.tree_of(module), key)
    return pb.NonExistenceProof(
        key=key.encode(),
        left=None if left is None else _existence(application, module, left.key),
        right=None if right is None else _existence(application, module, right.key),
    )


def _inner(sibling: bytes, right: bool) -> pb.InnerOp:
    """`right`: the way up comes from the right child."""
    if right:
        return pb.InnerOp(hash=pb.SHA256, prefix=_INNER + sibling)
    return pb.InnerOp(hash=pb.SHA256, prefix=_INNER, suffix=sibling)


# Checking proofs


def verify_state(app_hash: bytes, module: str, key: str, value: bytes | None, ops: Sequence[ProofOp]) -> None:
    """Check a value, or with None its absence, against an app hash. Raises Corrupt (code `bad_proof`)."""
    if [op.type for op in ops] != [SMT, SIMPLE] or [op.key for op in ops] != [key.encode(), module.encode()]:
        raise _bad(f"it has not the two steps of {key!r} and module {module!r}")
    smt, simple = (_parsed(op) for op in ops)
    if simple.WhichOneof("proof") != "exist":
        raise _bad("its second step shows no module's root")
    root = bytes(simple.exist.value)
    if _root_of(simple.exist, SIMPLE_LEAF, module.encode()) != app_hash:
        raise _bad(f"module {module!r} does not lead to the app hash")
    if value is None:
        _check_absence(smt, root, key)
        return
    if smt.WhichOneof("proof") != "exist" or smt.exist.value != value:
        raise _bad(f"it is not about this value of {key!r}")
    if _root_of(smt.exist, SMT_LEAF, key.encode()) != root:
        raise _bad(f"the value of {key!r} does not lead to the root of module {module!r}")


def _check_absence(proof: pb.CommitmentProof, root: bytes, key: str) -> None:
    """`verifyNonExistence` of ICS-23 for SmtSpec."""
    if proof.WhichOneof("proof") != "nonexist" or proof.nonexist.key != key.encode():
        raise _bad(f"it does not show that {key!r} is absent")
    absent = proof.nonexist
    left = absent.left if absent.HasField("left") else None
    right = absent.right if absent.HasField("right") else None
    place = tree.sha256(key.encode())
    for neighbour in (left, right):
        if neighbour is not None and _root_of(neighbour, SMT_LEAF, neighbour.key) != root:
            raise _bad(f"a neighbour of {key!r} does not lead to the module's root")
    if (left is not None and tree.sha256(left.key) >= place) or (right is not None and tree.sha256(right.key) <= place):
        raise _bad(f"the neighbours do not stand around {key!r}")
    if not _are_next(left, right, root):
        raise _bad(f"something may stand between the neighbours of {key!r}")


def _are_next(left: pb.ExistenceProof | None, right: pb.ExistenceProof | None, root: bytes) -> bool:
    """Whether nothing can stand between two leaves (None: the edge of the tree)."""
    if left is None and right is None:
        return root == tree.EMPTY
    if left is None:
        assert right is not None
        return _is_edge(right.path, last=False)
    if right is None:
        return _is_edge(left.path, last=True)
    ours, theirs = list(left.path), list(right.path)
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    if not ours or not theirs or _is_right(ours[-1]) or not _is_right(theirs[-1]):
        return False
    return _is_edge(ours[:-1], last=True) and _is_edge(theirs[:-1], last=False)


def _is_edge(path: Iterable[pb.InnerOp], *, last: bool) -> bool:
    """Whether a path comes from the last (or first) leaf below its top: what lies beyond each step is empty."""
    return all(_is_right(step) == last or _sibling(step) == tree.EMPTY for step in path)


def _is_right(step: pb.InnerOp) -> bool:
    return len(step.prefix) > 1


def _sibling(step: pb.InnerOp) -> bytes:
    return bytes(step.prefix[1:] or step.suffix)


def _root_of(proof: pb.ExistenceProof, leaf: pb.LeafOp, key: bytes) -> bytes:
    """The root that an existence proof leads to. Raises Corrupt where it has another form than our specs."""
    if proof.leaf != leaf or proof.key != key or not key or len(proof.value) > MAX_VALUE_BYTES:
        raise _bad("its leaf is not of our spec")
    if len(proof.path) > tree.DEPTH_BITS:
        raise _bad(f"it is deeper than {tree.DEPTH_BITS} levels")
    if leaf is SMT_LEAF:
        node = tree.sha256(leaf.prefix + tree.sha256(key) + tree.sha256(proof.value))
    else:
        node = tree.sha256(leaf.prefix + tree.module_leaf(key.decode(), proof.value))
    for step in proof.path:
        lengths = len(step.prefix), len(step.suffix)
        sided = lengths in ((1, tree.HASH_BYTES), (1 + tree.HASH_BYTES, 0))
        if step.hash != pb.SHA256 or not sided or step.prefix[:1] != _INNER:
            raise _bad("a step of it is not of our spec")
        node = tree.sha256(step.prefix + node + step.suffix)
    return node


def _parsed(op: ProofOp) -> pb.CommitmentProof:
    if len(op.data) > MAX_PROOF_BYTES:
        raise _bad(f"a step has {len(op.data)} bytes; at most {MAX_PROOF_BYTES} are read")
    try:
        return pb.CommitmentProof.FromString(op.data)
    except DecodeError:
        raise _bad("a step of it cannot be read") from None


def _bad(why: str) -> Corrupt:
    return Corrupt(f"the proof proves nothing: {why}; ask another node", code="bad_proof")
