"""Addresses and names."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talkoo_core.errors import InvalidInput
from talkoo_core.ids import (
    address_of_key,
    address_text,
    bech32_decode,
    bech32_encode,
    born_id,
    check_name,
    is_address,
    parse_address,
)

# BIP-173, section "Test vectors".
SPLIT = "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w"
VALID = ["A12UEL5L", "a12uel5l", "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw", SPLIT]
INVALID = ["pzry9x0s0muk", "1pzry9x0s0muk", "x1b4n0q5v", "li1dgmt3", "A1G7SGD8", "10a06t8", "1qzzfhee", "tlk1", ""]


@pytest.mark.parametrize("text", VALID)
def test_the_standard_s_vectors_are_read(text: str) -> None:
    prefix, data = bech32_decode(text)
    assert bech32_encode(prefix, data) == text.lower()


@pytest.mark.parametrize("text", INVALID)
def test_malformed_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        bech32_decode(text)
    assert caught.value.code == "bad_address"


@given(st.binary(min_size=20, max_size=20))
def test_addresses_come_back(raw: bytes) -> None:
    assert parse_address(address_text(raw)) == raw


@given(st.binary(min_size=20, max_size=20), st.data())
def test_one_changed_character_is_found(raw: bytes, data: st.DataObject) -> None:
    text = address_text(raw)
    place = data.draw(st.integers(4, len(text) - 1))
    other = data.draw(st.sampled_from([c for c in "qpzry9x8gf2tvdw0s3jn54khce6mua7l" if c != text[place]]))
    assert not is_address(text[:place] + other + text[place + 1 :])


def test_an_address_is_the_key_s_hash() -> None:
    assert parse_address(address_of_key(b"k" * 32)) == hashlib.sha256(b"k" * 32).digest()[:20]


def test_another_chain_s_address_is_refused() -> None:
    with pytest.raises(InvalidInput, match="start with tlk1"):
        parse_address(bech32_encode("cosmos", bytes(20)))


@pytest.mark.parametrize("name", ["a", "north-1", "x" * 63, "0"])
def test_names_are_dns_labels(name: str) -> None:
    assert check_name(name, "the task") == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a b", "x" * 64, "ä", "a/b"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="the task"):
        check_name(name, "the task")


def test_born_ids_name_kind_and_transaction() -> None:
    assert born_id("task", bytes(range(32))) == "task-0001020304050607"
