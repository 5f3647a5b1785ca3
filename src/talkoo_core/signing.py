"""Ed25519 by one library, with ZIP-215 rules as CometBFT's: every party accepts exactly the same signatures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import ed25519_zebra

from talkoo_core.errors import InvalidInput

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
ADDRESS_BYTES = 20


@dataclass(frozen=True, slots=True)
class PublicKey:
    """32 raw bytes. Raises InvalidInput (code `bad_public_key`) on another length."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != PUBLIC_KEY_BYTES:
            raise InvalidInput(
                f"a public key has {PUBLIC_KEY_BYTES} bytes, this one {len(self.raw)}", code="bad_public_key"
            )

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature is valid under ZIP-215; never raises on malformed signatures."""
        if len(signature) != SIGNATURE_BYTES:
            return False
        return bool(ed25519_zebra.ed_verify(signature, message, self.raw))

    @property
    def address(self) -> bytes:
        return address_of(self.raw)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A signing key made from a 32-byte seed (RFC 8032)."""

    seed: bytes = field(repr=False)
    _secret: bytes = field(repr=False)
    public: PublicKey

    @classmethod
    def from_seed(cls, seed: bytes) -> PrivateKey:
        if len(seed) != SEED_BYTES:
            raise InvalidInput(f"a seed has {SEED_BYTES} bytes, this one {len(seed)}", code="bad_seed")
        secret, public = ed25519_zebra.ed_from_seed(seed)
        return cls(seed, bytes(secret), PublicKey(bytes(public)))

    def sign(self, message: bytes) -> bytes:
        return bytes(ed25519_zebra.ed_sign(self._secret, message))


def address_of(public_key: bytes) -> bytes:
    """First 20 bytes of the SHA-256 of the key, as CometBFT."""
    return hashlib.sha256(public_key).digest()[:ADDRESS_BYTES]
