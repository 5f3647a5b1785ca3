"""A segment's transcript: one leaf for every step, and the RFC 6962 root that the rank commits to the ledger."""

from __future__ import annotations

from typing import Annotated

import msgspec

from talkoo_core.errors import Corrupt
from talkoo_core.merkle import hash_from_byte_slices

VERSION = 1
MAX_STEPS = 10_000
"""Steps in one segment."""

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Bits = Annotated[bytes, msgspec.Meta(min_length=4, max_length=4)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Leaf(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one rank says about one step. Its canonical bytes: MessagePack of this array, fields in this order."""

    step: Count
    """Global step, 0-based."""
    batch: Digest
    """Of the rank's sample numbers."""
    loss: Bits
    """float32 of the rank's own mean loss, little-endian."""
    contribution: Digest
    """Of the rank's own weighted gradient in fixed point."""
    aggregate: Digest
    """Of the sum over all ranks, the same on each."""
    params: Digest
    """Of parameters and buffers after the step."""
    optimizer: Digest
    """Of the optimizer's state after the step."""


class Transcript(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All leaves of one rank over one segment, as uploaded."""

    version: Count
    segment: Count
    rank: Count
    leaves: Annotated[list[Leaf], msgspec.Meta(min_length=1, max_length=MAX_STEPS)]


_decoder = msgspec.msgpack.Decoder(Transcript)


def leaf_bytes(leaf: Leaf) -> bytes:
    return msgspec.msgpack.encode(leaf)


def root_of(leaves: list[Leaf]) -> bytes:
    """32 bytes: RFC 6962 Merkle root over the leaves' canonical bytes, in order of steps."""
    return hash_from_byte_slices([leaf_bytes(leaf) for leaf in leaves])


def encode_transcript(transcript: Transcript) -> bytes:
    return msgspec.msgpack.encode(transcript)


def decode_transcript(data: bytes) -> Transcript:
    """Raises `Corrupt` (code `bad_transcript`) on anything that is not the one encoding of a transcript."""
    try:
        transcript = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"a transcript cannot be read: {error}", code="bad_transcript") from error
    if transcript.version != VERSION:
        raise Corrupt(
            f"a transcript has version {transcript.version}; this node reads {VERSION}", code="bad_transcript"
        )
    if encode_transcript(transcript) != data:
        raise Corrupt("a transcript is not in its canonical encoding", code="bad_transcript")
    return transcript
