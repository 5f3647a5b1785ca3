"""What our validator signed last, on disk before any of it leaves: never two signatures for one place.

Nothing reaches the disk before `sync`, which comes after the log's: whatever this file knows, the log explains. A node
that stops in between finds its own messages in its log and adopts them (the log is redone); the other way round it
would stand before a signature whose reasons are forgotten, and could neither repeat nor replace it.

As CometBFT's private validator: a place is (height, round, step). The same place and the same content reuse the stored
signature (a vote that differs only in its time is the stored vote); other content, or a place that is not later than
the last one, is refused.

One file of `SLOTS` slots, made at once in its full size, so that writing a slot changes nothing but that slot and one
fdatasync makes it durable. Slots are filled in order; when all are full, the file is replaced by one that begins with
the last `KEPT`. A slot: height, round, step, length, the signed message, zeros, CRC-32, and a byte that is not zero.
A process or machine that stops while it writes leaves a slot with zeros from somewhere on, and only zeros behind it:
such a torn slot was never synced, so nothing of it has left, and it is written anew. Anything else that does not fit
its checksum is damage, and the validator does not start.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from enum import IntEnum
from typing import Final, TypeAlias

from talkoo_consensus.encoding import (
    decode_proposal,
    decode_vote,
    encode_proposal,
    encode_vote,
    proposal_sign_bytes,
    vote_sign_bytes,
)
from talkoo_consensus.types import Proposal, SignedType, Vote

from talkoo_core.errors import Conflict, Corrupt
from talkoo_core.signing import PrivateKey
from talkoo_runtime.disk import Disk

FILE: Final = "sign-state"
SLOT_BYTES: Final = 512
"""A sector: disks write it whole or not at all. A signed vote takes 190 bytes."""
SLOTS: Final = 512
KEPT: Final = 16
_HEAD = struct.Struct(">QIBH")
_CHECKSUM = struct.Struct(">I")
_END: Final = b"\xa5"
_ROOM: Final = SLOT_BYTES - _HEAD.size - _CHECKSUM.size - len(_END)

Place: TypeAlias = tuple[int, int, int]


class SignStep(IntEnum):
    PROPOSAL = 1
    PREVOTE = 2
    PRECOMMIT = 3


class DoubleSignRefused(Conflict):
    """Signing this would be, or could look like, signing two things for one place."""


class Signer:
    """Signs for one validator key. Nothing it signed may leave the node before `sync` has returned.

    Opening it reads what was signed; raises Corrupt (code `sign_state_damaged`) when that file is damaged.
    """

    def __init__(self, key: PrivateKey, chain_id: str, disk: Disk) -> None:
        self._key = key
        self._chain_id = chain_id
        self._disk = disk
        content = disk.read(FILE)
        if content is None:
            content = bytes(SLOTS * SLOT_BYTES)
            disk.replace(FILE, content)
        self._slots = _filled(content, disk.path(FILE))
        self._signed: dict[Place, bytes] = {_place(slot): _message(slot) for slot in self._slots[-KEPT:]}
        # After a crash of the process alone, what it wrote may not be durable yet, and it is about to be sent again.
        self._unsynced = bool(self._slots)
        self._waiting: list[bytes] = []
        """Slots that `sync` will write."""

    @property
    def last(self) -> Place:
        """The last place that was signed; (0, 0, 0): none."""
        newest = self._waiting or self._slots
        return _place(newest[-1]) if newest else (0, 0, 0)

    @property
    def unsynced(self) -> bool:
        """Whether something was signed that may not leave yet."""
        return self._unsynced

    def sync(self) -> None:
        """Make everything signed durable; the log comes first. Raises Exhausted (full disk), Internal (broken disk)."""
        for slot in self._waiting:
            self._write(slot)
        self._waiting.clear()
        self._disk.sync(FILE)
        self._unsynced = False

    def sign_vote(self, vote: Vote, now_ns: int) -> Vote:
        """The signed vote. Raises DoubleSignRefused, Exhausted (full disk), Internal (broken disk)."""
        place = place_of(vote)
        stored = self._stored(place)
        if stored is not None:
            known = decode_vote(stored)
            if known.block_id == vote.block_id:
                return known
        self._check(place)
        unsigned = replace(vote, timestamp_ns=now_ns)
        signed = replace(unsigned, signature=self._key.sign(vote_sign_bytes(self._chain_id, unsigned)))
        self._keep(place, encode_vote(signed))
        return signed

    def sign_proposal(self, proposal: Proposal) -> Proposal:
        """The signed proposal. Raises DoubleSignRefused, Exhausted (full disk), Internal (broken disk)."""
        place = place_of(proposal)
        stored = self._stored(place)
        if stored is not None:
            known = decode_proposal(stored)
            if replace(known, signature=b"") == replace(proposal, signature=b""):
                return known
        self._check(place)
        signed = replace(proposal, signature=self._key.sign(proposal_sign_bytes(self._chain_id, proposal)))
        self._keep(place, encode_proposal(signed))
        return signed

    def adopt(self, signed: Vote | Proposal) -> None:
        """An own message that the log knows and this state may not: the node stopped between the two."""
        if place_of(signed) > self.last:
            self._keep(place_of(signed), encode_vote(signed) if isinstance(signed, Vote) else encode_proposal(signed))

    def _stored(self, place: Place) -> bytes | None:
        """What was signed for a place, while it is among the last `KEPT`."""
        return self._signed.get(place)

    def _check(self, place: Place) -> None:
        if place <= self.last:
            height, round_, step = self.last
            raise DoubleSignRefused(
                f"will not sign for height {place[0]}, round {place[1]}, step {place[2]}: already signed for "
                f"{height}, {round_}, {step}",
                code="double_sign",
            )

    def _keep(self, place: Place, message: bytes) -> None:
        self._waiting.append(_slot(place, message))
        self._unsynced = True
        self._signed[place] = message
        while len(self._signed) > KEPT:
            del self._signed[next(iter(self._signed))]

    def _write(self, slot: bytes) -> None:
        if len(self._slots) == SLOTS:
            kept = self._slots[-KEPT:]
            self._disk.replace(FILE, b"".join(kept).ljust(SLOTS * SLOT_BYTES, b"\x00"))
            self._slots = kept
        self._disk.write_at(FILE, len(self._slots) * SLOT_BYTES, slot)
        self._slots.append(slot)


def place_of(signed: Vote | Proposal) -> Place:
    """Height, round and step of a message, in the order in which a validator signs."""
    if isinstance(signed, Proposal):
        return signed.height, signed.round, int(SignStep.PROPOSAL)
    step = SignStep.PREVOTE if signed.type is SignedType.PREVOTE else SignStep.PRECOMMIT
    return signed.height, signed.round, int(step)


def _slot(place: Place, message: bytes) -> bytes:
    assert len(message) <= _ROOM, f"{len(message)} bytes of a signed message"
    body = (_HEAD.pack(*place, len(message)) + message).ljust(_HEAD.size + _ROOM, b"\x00")
    return body + _CHECKSUM.pack(zlib.crc32(body)) + _END


def _place(slot: bytes) -> Place:
    height, round_, step, _ = _HEAD.unpack_from(slot)
    return height, round_, step


def _message(slot: bytes) -> bytes:
    length = _HEAD.unpack_from(slot)[3]
    return slot[_HEAD.size : _HEAD.size + length]


def _is_whole(slot: bytes) -> bool:
    body, checksum = slot[: _HEAD.size + _ROOM], slot[_HEAD.size + _ROOM :][: _CHECKSUM.size]
    return bool(body.strip(b"\x00")) and _CHECKSUM.pack(zlib.crc32(body)) == checksum


def _filled(content: bytes, path: str) -> list[bytes]:
    """The slots in use. Raises Corrupt."""
    if len(content) != SLOTS * SLOT_BYTES:
        raise _damaged(path, f"it has {len(content)} bytes instead of {SLOTS * SLOT_BYTES}")
    slots: list[bytes] = []
    for offset in range(0, len(content), SLOT_BYTES):
        slot = content[offset : offset + SLOT_BYTES]
        if not _is_whole(slot):
            # Torn, or not used yet: its last byte was never written, nor anything behind it.
            if content[offset + SLOT_BYTES - len(_END) :].strip(b"\x00"):
                raise _damaged(path, f"the checksum at byte {offset} does not fit")
            return slots
        if slots and _place(slot) <= _place(slots[-1]):
            raise _damaged(path, f"what follows at byte {offset} was signed before what stands ahead of it")
        slots.append(slot)
    return slots


def _damaged(path: str, why: str) -> Corrupt:
    return Corrupt(
        f"{path} is damaged ({why}); without it this validator could sign twice: restore it from a backup, or "
        "let the organization rotate its consensus key",
        code="sign_state_damaged",
    )
