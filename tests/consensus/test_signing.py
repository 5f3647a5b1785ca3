"""RFC 8032's vectors, and the corner cases in which ZIP-215 (CometBFT's rule) and other readings of Ed25519 differ.

signatures.json holds published corner cases (Wycheproof and others, see its `sources`) with the verdict of CometBFT
v1.0.1 itself, printed by vectors/signatures/main.go.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from talkoo_core.errors import InvalidInput
from talkoo_core.signing import PrivateKey, PublicKey, address_of

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "signatures.json").read_text())
raw = bytes.fromhex

RFC_8032 = [  # seed, public key, message, signature: section 7.1, tests 1 to 3
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]

SMALL_ORDER = [  # points of order 1, 2, 4, 8 and encodings of them that are not reduced: ZIP-215 takes them all
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0100000000000000000000000000000000000000000000000000000000000080",
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_keys_and_signatures_are_those_of_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    key = PrivateKey.from_seed(raw(seed))
    assert key.public.raw.hex() == public
    assert key.sign(raw(message)).hex() == signature
    assert key.public.verify(raw(signature), raw(message))
    assert not key.public.verify(raw(signature), raw(message) + b"x")


@pytest.mark.parametrize("point", SMALL_ORDER)
@pytest.mark.parametrize("commitment", SMALL_ORDER[:5])
def test_small_order_points_verify_with_scalar_zero_as_zip_215_demands(point: str, commitment: str) -> None:
    assert PublicKey(raw(point)).verify(raw(commitment) + bytes(32), b"Zcash")


def test_a_scalar_that_is_not_reduced_is_refused() -> None:
    seed, _, message, signature = RFC_8032[1]
    order = 2**252 + 27742317777372353535851937790883648493
    good = raw(signature)
    scalar = int.from_bytes(good[32:], "little") + order
    forged = good[:32] + scalar.to_bytes(32, "little")
    assert not PrivateKey.from_seed(raw(seed)).public.verify(forged, raw(message))


@pytest.mark.parametrize("length", [0, 1, 63, 65, 1000])
def test_a_signature_of_another_length_is_wrong_and_raises_nothing(length: int) -> None:
    assert not PrivateKey.from_seed(bytes(32)).public.verify(bytes(length), b"")


def test_a_key_that_is_no_point_verifies_nothing_and_raises_nothing() -> None:
    assert not PublicKey(bytes([2]) + bytes(31)).verify(bytes(64), b"")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_and_seeds_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(InvalidInput):
        PublicKey(bytes(length))
    with pytest.raises(InvalidInput):
        PrivateKey.from_seed(bytes(length))


def test_an_address_is_twenty_bytes_and_a_seed_stays_out_of_texts() -> None:
    key = PrivateKey.from_seed(bytes(range(32)))
    assert key.public.address == address_of(key.public.raw)
    assert len(key.public.address) == 20
    assert "seed" not in repr(key)
    assert "_secret" not in repr(key)


# Published corner cases


def _verdict(case: dict[str, Any]) -> bool:
    return PublicKey(raw(case["key"])).verify(raw(case["signature"]), raw(case["message"]))


@pytest.mark.parametrize(
    ("source", "count", "accepted"),
    [("wycheproof", 151, 89), ("small_order", 196, 196), ("speccheck", 12, 9), ("combinations", 768, 768)],
)
def test_published_corner_cases_are_judged_as_cometbft_judges_them(source: str, count: int, accepted: int) -> None:
    cases = PUBLISHED[source]
    assert [_verdict(case) for case in cases] == [case["cometbft"] for case in cases]
    assert (len(cases), sum(case["cometbft"] for case in cases)) == (count, accepted)


ZIP_215_ACCEPTS = {
    151: "R = (0, 1) is written with the sign of x set. RFC 8032 refuses to decode a zero x with a sign; ZIP-215 takes "
    "every encoding of a point, because nodes that disagree on one signature would disagree on a block.",
}


def test_wycheproof_is_followed_but_where_zip_215_says_otherwise() -> None:
    differing = [case for case in PUBLISHED["wycheproof"] if _verdict(case) != (case["result"] == "valid")]
    assert {case["id"] for case in differing} == set(ZIP_215_ACCEPTS)
    assert all(case["result"] == "invalid" and case["flags"] == ["InvalidEncoding"] for case in differing)


def test_the_vectors_hold_every_pair_of_small_order_encodings() -> None:
    """Fourteen encodings, six of them not canonical, as key and as commitment."""
    cases = PUBLISHED["small_order"]
    keys, commitments = {case["key"] for case in cases}, {case["signature"][:64] for case in cases}
    assert (len(keys), keys) == (14, commitments)
    assert len({(case["key"], case["signature"]) for case in cases}) == 14 * 14
    assert set(SMALL_ORDER) < keys


def test_one_changed_bit_anywhere_in_a_signature_or_its_message_is_refused() -> None:
    _, public, message, signature = RFC_8032[2]
    for bit in range(8 * (64 + len(raw(message)))):
        changed = bytearray(raw(signature + message))
        changed[bit // 8] ^= 1 << bit % 8
        assert not PublicKey(raw(public)).verify(bytes(changed[:64]), bytes(changed[64:])), bit
