"""Signatures under ZIP-215 and RFC 6962 trees, by vectors that others published."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkoo_core.errors import InvalidInput
from talkoo_core.merkle import Proof, hash_from_byte_slices, proofs_from_byte_slices
from talkoo_core.signing import PrivateKey, PublicKey

# RFC 8032, section 7.1: secret key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
]
# RFC 6962 roots over the leaves of certificate transparency's own test data.
LEAVES = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    bytes(range(0x50, 0x58)),
    bytes(range(0x60, 0x70)),
]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_rfc_8032_vectors(seed: str, public: str, message: str, signature: str) -> None:
    key = PrivateKey.from_seed(bytes.fromhex(seed))
    assert key.public.raw.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert key.public.verify(bytes.fromhex(signature), bytes.fromhex(message))
    assert not key.public.verify(bytes.fromhex(signature), bytes.fromhex(message) + b"x")


def test_zip_215_accepts_a_small_order_key_where_strict_libraries_differ() -> None:
    """The point of order 1 as key and as R, with s = 0: valid under ZIP-215 for every message."""
    identity = bytes([1]) + bytes(31)
    assert PublicKey(identity).verify(identity + bytes(32), b"anything")


def test_zip_215_refuses_a_scalar_that_is_not_reduced() -> None:
    key = PrivateKey.from_seed(bytes(32))
    signature = key.sign(b"m")
    order = 2**252 + 27742317777372353535851937790883648493
    moved = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert not key.public.verify(signature[:32] + moved, b"m")


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(65)])
def test_a_signature_of_another_length_is_just_wrong(signature: bytes) -> None:
    assert not PrivateKey.from_seed(bytes(32)).public.verify(signature, b"m")


def test_wrong_lengths_of_keys_are_refused_and_seeds_stay_hidden() -> None:
    with pytest.raises(InvalidInput):
        PublicKey(bytes(31))
    with pytest.raises(InvalidInput):
        PrivateKey.from_seed(bytes(33))
    assert "seed" not in repr(PrivateKey.from_seed(bytes(32)))


@pytest.mark.parametrize("count", sorted(ROOTS))
def test_rfc_6962_roots(count: int) -> None:
    assert hash_from_byte_slices(LEAVES[:count]).hex() == ROOTS[count]


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=40), st.data())
def test_each_leaf_has_a_proof_and_no_other_leaf_fits_it(leaves: list[bytes], data: st.DataObject) -> None:
    root, proofs = proofs_from_byte_slices(leaves)
    assert root == hash_from_byte_slices(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    assert proofs[index].verify(root, leaves[index])
    assert not proofs[index].verify(root, leaves[index] + b"x")
    assert not proofs[index].verify(hashlib.sha256(root).digest(), leaves[index])


def test_proofs_of_impossible_shape_lead_nowhere() -> None:
    leaf = hashlib.sha256(b"\x00").digest()
    assert Proof(1, 0, leaf, (leaf,)).root() is None
    assert Proof(2, 0, leaf, ()).root() is None
    assert Proof(2, 2, leaf, (leaf,)).root() is None
    assert Proof(2, 0, leaf, (leaf,) * 101).root() is None
