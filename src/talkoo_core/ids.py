"""Names of things: addresses (bech32, BIP-173) and the identifiers that transactions give birth to.

An address is the first 20 bytes of the SHA-256 of an Ed25519 public key, as CometBFT's, written as bech32 with the
prefix `tlk`, so that a mistyped address is refused instead of paid.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from talkoo_core.errors import InvalidInput

ADDRESS_BYTES = 20
ADDRESS_PREFIX = "tlk"
NAME_MAX_LENGTH = 63

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUE_OF = {character: value for value, character in enumerate(_CHARSET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit in range(5):
            if (top >> bit) & 1:
                check ^= _GENERATOR[bit]
    return check


def _expand(prefix: str) -> list[int]:
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def _regroup(values: Iterable[int], from_bits: int, to_bits: int, pad: bool) -> list[int]:
    """Repack a sequence of `from_bits`-wide numbers as `to_bits`-wide ones (BIP-173, convertbits)."""
    accumulator = bits = 0
    out: list[int] = []
    for value in values:
        accumulator = (accumulator << from_bits) | value
        bits += from_bits
        while bits >= to_bits:
            bits -= to_bits
            out.append((accumulator >> bits) & ((1 << to_bits) - 1))
    if pad and bits:
        out.append((accumulator << (to_bits - bits)) & ((1 << to_bits) - 1))
    elif not pad and (bits >= from_bits or (accumulator << (to_bits - bits)) & ((1 << to_bits) - 1)):
        raise InvalidInput("the address has stray bits at its end; copy it again", code="bad_address")
    return out


def bech32_encode(prefix: str, data: bytes) -> str:
    words = _regroup(data, 8, 5, pad=True)
    polymod = _polymod([*_expand(prefix), *words, 0, 0, 0, 0, 0, 0]) ^ 1
    checksum = [(polymod >> 5 * (5 - i)) & 31 for i in range(6)]
    return prefix + "1" + "".join(_CHARSET[word] for word in [*words, *checksum])


def bech32_decode(text: str) -> tuple[str, bytes]:
    """Read a bech32 text. Raises `InvalidInput` (code `bad_address`) on a wrong character or checksum."""
    lowered = text.lower()
    split = lowered.rfind("1")
    if (text not in (lowered, text.upper())) or split < 1 or len(text) > 90 or len(text) - split < 7:
        raise InvalidInput(f"{text!r} is not an address; addresses look like tlk1…", code="bad_address")
    prefix, body = lowered[:split], lowered[split + 1 :]
    if any(c not in _VALUE_OF for c in body):
        raise InvalidInput(f"{text!r} holds a character no address has; copy it again", code="bad_address")
    words = [_VALUE_OF[c] for c in body]
    if _polymod([*_expand(prefix), *words]) != 1:
        raise InvalidInput(f"{text!r} is mistyped: its checksum does not fit; copy it again", code="bad_address")
    return prefix, bytes(_regroup(words[:-6], 5, 8, pad=False))


def address_text(raw: bytes) -> str:
    """20 raw bytes to `tlk1…`."""
    assert len(raw) == ADDRESS_BYTES
    return bech32_encode(ADDRESS_PREFIX, raw)


def address_of_key(public_key: bytes) -> str:
    """The address that a 32-byte Ed25519 public key owns."""
    return address_text(hashlib.sha256(public_key).digest()[:ADDRESS_BYTES])


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
