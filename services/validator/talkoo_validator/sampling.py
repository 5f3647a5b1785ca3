"""Which segments are opened, derived again from block hashes alone, and what spot checks are worth.

Beacon and draw are defined by the ledger; this is a second, independent writing of the same rule, so that a validator
and `talkoo verify` take nobody's word for them.
"""

from __future__ import annotations

import hashlib
import math
import struct
from fractions import Fraction

BEACON_DOMAIN = b"talkoo/beacon/v1\n"
DRAW_DOMAIN = b"talkoo/draw/v1\n"
DRAW_BYTES = 8
"""Leading bytes of the draw's hash that are compared with the rate."""
PPM = 1_000_000


def beacon_of(block_hash: bytes, task_id: str, attempt: int, segment: int) -> bytes:
    """32 bytes: seed of a segment's data order. `block_hash`: of the block that opened the segment."""
    return _hash(BEACON_DOMAIN, block_hash, task_id, attempt, segment)


def draw_of(block_hash: bytes, task_id: str, attempt: int, segment: int) -> bytes:
    """32 bytes: the lot of a committed segment. `block_hash`: of the block after its last commitment."""
    return _hash(DRAW_DOMAIN, block_hash, task_id, attempt, segment)


def is_drawn(draw: bytes, rate_ppm: int) -> bool:
    """Whether the lot opens the segment: its first 8 bytes as a fraction of 2^64 lie below the rate. Exact integers."""
    assert len(draw) == hashlib.sha256().digest_size
    return int.from_bytes(draw[:DRAW_BYTES], "big") * PPM < rate_ppm << (8 * DRAW_BYTES)


def detection_ppm(cheat_ppm: int, checks: int) -> int:
    """Chance, rounded down, that `checks` independent spot checks meet at least one forgery: 1 - (1 - c)^n."""
    return math.floor((1 - (1 - Fraction(cheat_ppm, PPM)) ** checks) * PPM)


def checks_needed(cheat_ppm: int, confidence_ppm: int) -> int:
    """The least n with 1 - (1 - c)^n ≥ confidence, exactly. `cheat_ppm` and `confidence_ppm` lie inside (0, 10^6)."""
    assert 0 < cheat_ppm < PPM
    assert 0 < confidence_ppm < PPM
    clean, unseen = 1 - Fraction(cheat_ppm, PPM), 1 - Fraction(confidence_ppm, PPM)
    checks = max(1, math.floor(math.log(unseen) / math.log(clean)) - 1)  # floats give the neighbourhood only
    while clean**checks > unseen:
        checks += 1
    return checks


def _hash(domain: bytes, block_hash: bytes, task_id: str, attempt: int, segment: int) -> bytes:
    return hashlib.sha256(domain + block_hash + task_id.encode() + struct.pack(">II", attempt, segment)).digest()
