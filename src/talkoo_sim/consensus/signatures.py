"""Signatures inside a simulation: real Ed25519, or a keyed hash in its place that costs a fiftieth.

The hash's key is the public key, so anybody could forge it; nobody in a simulation does, what the simulated liars sign
they sign with their own keys. It enters by the one name through which consensus verifies (`verify.PublicKey`). Results
of pure functions (decoding a vote, verifying it) are remembered: what 16 validators receive is worked out once.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from talkoo_consensus import encoding, evidence, verify
from talkoo_ledger import intake, node, sign_state, wal

from talkoo_core.signing import SIGNATURE_BYTES, PrivateKey, PublicKey

REMEMBERED = 4_096
SLOTS = 48
"""Of the sign state, few enough to be filled and replaced within a simulation."""


@dataclass(frozen=True, slots=True)
class HashedPublicKey:
    """In place of `PublicKey`."""

    raw: bytes

    def verify(self, signature: bytes, message: bytes) -> bool:
        return signature == hashlib.blake2b(message, key=self.raw, digest_size=SIGNATURE_BYTES).digest()


@dataclass(frozen=True, slots=True)
class HashedKey:
    """In place of `PrivateKey`."""

    public: PublicKey

    def sign(self, message: bytes) -> bytes:
        return hashlib.blake2b(message, key=self.public.raw, digest_size=SIGNATURE_BYTES).digest()


def key_of(seed: bytes, *, real: bool) -> PrivateKey:
    if real:
        return PrivateKey.from_seed(seed)
    return cast("PrivateKey", HashedKey(PublicKey(hashlib.sha256(seed).digest())))


@contextmanager
def simulated(*, real: bool) -> Iterator[None]:
    """For the duration of one simulation. Restores everything, logging included (dropped messages are the point)."""
    remember = functools.lru_cache(maxsize=REMEMBERED)
    verify_vote = remember(verify.verify_vote)
    decode_vote = remember(encoding.decode_vote)
    encode_vote = remember(encoding.encode_vote)
    changes: list[tuple[Any, str, object]] = [
        (verify, "verify_vote", verify_vote),
        (intake, "verify_vote", verify_vote),
        (evidence, "verify_vote", verify_vote),
        (intake, "decode_vote", decode_vote),
        (intake, "decode_block", remember(encoding.decode_block)),
        (node, "encode_vote", encode_vote),
        (wal, "encode_vote", encode_vote),
        (sign_state, "encode_vote", encode_vote),
        (sign_state, "SLOTS", SLOTS),
    ]
    if not real:
        changes.append((verify, "PublicKey", HashedPublicKey))
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        logging.disable(level)
