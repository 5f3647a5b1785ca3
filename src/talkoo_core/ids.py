"""Names of things: addresses (bech32, BIP-173) and the identifiers that transactions give birth to.

An address is the first 20 bytes of the SHA-256 of an Ed25519 public key, as CometBFT's, written as bech32 with the
prefix `tlk`, so that a mistyped address is refused instead of paid.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce
from operator import xor

from talkoo_core.errors import InvalidInput

ADDRESS_BYTES = 20
ADDRESS_PREFIX = "tlk"
NAME_MAX_LENGTH = 63
ADDRESSES_REMEMBERED = 8_192
"""Whoever sends a transaction sends another soon: the text of an address is made and read once, not each time."""

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUE_OF = {character: value for value, character in enumerate(_CHARSET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _step(top: int) -> int:
    """What the five bits that leave the checksum's register put back into it."""
    return reduce(xor, (generator for bit, generator in enumerate(_GENERATOR) if top >> bit & 1), 0)


_STEPS = tuple(_step(top) for top in range(32))


def _polymod(values: Iterable[int], check: int = 1) -> int:
    for value in values:
        check = (check & 0x1FFFFFF) << 5 ^ value ^ _STEPS[check >> 25]
    return check


@lru_cache(maxsize=16)
def _polymod_of_prefix(prefix: str) -> int:
    return _polymod([ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix])


def _words(data: bytes) -> list[int]:
    """Bytes as five-bit numbers, filled up with zero bits (BIP-173, convertbits)."""
    count = (8 * len(data) + 4) // 5
    number = int.from_bytes(data, "big") << 5 * count - 8 * len(data)
    return [number >> shift & 31 for shift in range(5 * (count - 1), -1, -5)]


def _bytes(words: Sequence[int]) -> bytes:
    """The inverse. Raises InvalidInput where what was filled up is not zero, or is a whole word."""
    number = 0
    for word in words:
        number = number << 5 | word
    spare = 5 * len(words) % 8
    if spare >= 5 or number & (1 << spare) - 1:
        raise InvalidInput("the address has stray bits at its end; copy it again", code="bad_address")
    return (number >> spare).to_bytes(5 * len(words) // 8, "big")


def bech32_encode(prefix: str, data: bytes) -> str:
    words = _words(data)
    polymod = _polymod([*words, 0, 0, 0, 0, 0, 0], _polymod_of_prefix(prefix)) ^ 1
    checksum = [(polymod >> 5 * (5 - i)) & 31 for i in range(6)]
    return prefix + "1" + "".join(_CHARSET[word] for word in [*words, *checksum])


def bech32_decode(text: str) -> tuple[str, bytes]:
    """Read a bech32 text. Raises `InvalidInput` (code `bad_address`) on a wrong character or checksum."""
    lowered = text.lower()
    split = lowered.rfind("1")
    if (text not in (lowered, text.upper())) or split < 1 or len(text) > 90 or len(text) - split < 7:
        raise InvalidInput(f"{text!r} is not an address; addresses look like tlk1…", code="bad_address")
    prefix, body = lowered[:split], lowered[split + 1 :]
    try:
        words = [_VALUE_OF[c] for c in body]
    except KeyError:
        raise InvalidInput(f"{text!r} holds a character no address has; copy it again", code="bad_address") from None
    if _polymod(words, _polymod_of_prefix(prefix)) != 1:
        raise InvalidInput(f"{text!r} is mistyped: its checksum does not fit; copy it again", code="bad_address")
    return prefix, _bytes(words[:-6])


def address_text(raw: bytes) -> str:
    """20 raw bytes to `tlk1…`."""
    assert len(raw) == ADDRESS_BYTES
    return bech32_encode(ADDRESS_PREFIX, raw)


@lru_cache(maxsize=ADDRESSES_REMEMBERED)
def address_of_key(public_key: bytes) -> str:
    """The address that a 32-byte Ed25519 public key owns."""
    return address_text(hashlib.sha256(public_key).digest()[:ADDRESS_BYTES])


@lru_cache(maxsize=ADDRESSES_REMEMBERED)
def parse_address(text: str) -> bytes:
    """`tlk1…` to 20 raw bytes. Raises `InvalidInput` (code `bad_address`)."""
    prefix, raw = bech32_decode(text)
    if prefix != ADDRESS_PREFIX or len(raw) != ADDRESS_BYTES:
        raise InvalidInput(f"{text!r} is not a Talkoo address; they start with tlk1", code="bad_address")
    return raw


def is_address(text: str) -> bool:
    try:
        parse_address(text)
    except InvalidInput:
        return False
    return True


def check_name(text: str, what: str) -> str:
    """Accept a DNS label (RFC 1123), the rule Kubernetes names follow. Raises `InvalidInput` (code `bad_name`)."""
    if not _NAME.fullmatch(text):
        raise InvalidInput(
            f"{what} {text!r} is not a name: use 1 to {NAME_MAX_LENGTH} of a-z, 0-9 and '-', not at the ends",
            code="bad_name",
        )
    return text


def born_id(kind: str, tx_hash: bytes) -> str:
    """The id of a thing a transaction creates: its kind and 16 hex digits of the transaction's hash."""
    return f"{kind}-{tx_hash.hex()[:16]}"
