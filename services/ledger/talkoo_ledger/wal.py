"""The write-ahead log of the height under way: every consensus input, in order, on disk before its effects leave.

One file for each height. A record is length, CRC-32 and payload; a record that is cut off at the end of the file was
being written when the machine stopped and is dropped, anything wrong before that is damage and refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TypeAlias

from talkoo_consensus.encoding import (
    block_id_of,
    decode_block,
    decode_proposal,
    decode_vote,
    encode_block,
    encode_proposal,
    encode_vote,
)
from talkoo_consensus.events import ProposalReceived, Step, TimeoutElapsed, VoteReceived

from talkoo_core.errors import Corrupt, TalkooError
from talkoo_runtime.disk import Disk

Logged: TypeAlias = ProposalReceived | VoteReceived | TimeoutElapsed

SUFFIX = ".wal"
MAX_RECORD_BYTES = 8 * 1024 * 1024
_HEAD = struct.Struct(">II")
_TIMEOUT = struct.Struct(">QIB")
_PROPOSAL_HEAD = struct.Struct(">?I")
_VOTE, _PROPOSAL, _TIMED = _KINDS = b"V", b"P", b"T"


class WriteAheadLog:
    """The log of one height at a time. `append` buffers; `sync` makes everything appended durable with one fsync."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._name = ""
        self._end = 0
        self._buffer = bytearray()
        self._unsynced = False

    def begin(self, height: int) -> None:
        """Start the log of a height; those of earlier heights are removed, their blocks are stored.

        What was appended for an earlier height and not synced is dropped with them.
        """
        self._buffer.clear()
        self._name = file_name(height)
        before = self._disk.read(self._name)
        self._end = 0 if before is None else len(before)
        # What a crashed process wrote may not be durable yet; what follows from it is about to be said again.
        self._unsynced = before is not None
        if before is None:
            self._disk.write_at(self._name, 0, b"")
        for old in self._disk.names():
            if old.endswith(SUFFIX) and int(old.removesuffix(SUFFIX)) < height:
                self._disk.remove(old)
        self._disk.sync_names()

    def append(self, event: Logged) -> None:
        payload = _encode(event)
        self._buffer += _HEAD.pack(len(payload), zlib.crc32(payload)) + payload

    def sync(self) -> None:
        """Write what was appended and fsync. Raises Exhausted (full disk), Internal (broken disk)."""
        if not self._buffer and not self._unsynced:
            return
        assert self._name, "begin comes before sync"
        self._disk.write_at(self._name, self._end, bytes(self._buffer))
        self._disk.sync(self._name)
        self._end += len(self._buffer)
        self._buffer.clear()
        self._unsynced = False

    def close(self) -> None:
        if self._name:
            self.sync()
        self._disk.close()

    def replay(self, height: int) -> Iterator[Logged]:
        """The logged inputs of a height; none where there is no log. Raises Corrupt with file and offset.

        A torn last record is cut off, so that what is appended later is readable.
        """
        name = file_name(height)
        data = self._disk.read(name)
        if data is None:
            return
        path, offset = self._disk.path(name), 0
        while offset < len(data):
            payload = _record(data, offset, path)
            if payload is None:
                self._disk.truncate(name, offset)
                return
            yield _decoded(payload, offset, path)
            offset += _HEAD.size + len(payload)


def file_name(height: int) -> str:
    """Of the log of a height."""
    return f"{height:016d}{SUFFIX}"


def _record(data: bytes, offset: int, path: str) -> bytes | None:
    """The payload at an offset, or None for a torn tail."""
    if len(data) - offset < _HEAD.size:
        return None
    length, checksum = _HEAD.unpack_from(data, offset)
    payload = data[offset + _HEAD.size : offset + _HEAD.size + length]
    if 0 < length <= MAX_RECORD_BYTES and len(payload) == length and zlib.crc32(payload) == checksum:
        return payload
    later = _next_record(data, offset + 1)
    if later is None:
        return None
    raise _damaged(path, offset, f"the checksum does not fit, and whole records follow at byte {later}")


def _next_record(data: bytes, offset: int) -> int | None:
    """Where a whole record begins at or after an offset. The length of a damaged one cannot be trusted to skip it."""
    for place in range(offset, len(data) - _HEAD.size):
        length, checksum = _HEAD.unpack_from(data, place)
        begin = place + _HEAD.size
        likely = 0 < length <= len(data) - begin and data[begin : begin + 1] in _KINDS
        if likely and zlib.crc32(data[begin : begin + length]) == checksum:
            return place
    return None


def _encode(event: Logged) -> bytes:
    match event:
        case VoteReceived(vote):
            return _VOTE + encode_vote(vote)
        case ProposalReceived(proposal, block, timely):
            encoded = encode_proposal(proposal)
            return _PROPOSAL + _PROPOSAL_HEAD.pack(timely, len(encoded)) + encoded + encode_block(block)
        case TimeoutElapsed(height, round_, step):
            return _TIMED + _TIMEOUT.pack(height, round_, step)


def _decoded(payload: bytes, offset: int, path: str) -> Logged:
    kind, body = payload[:1], payload[1:]
    try:
        if kind == _VOTE:
            return VoteReceived(decode_vote(body))
        if kind == _PROPOSAL:
            timely, length = _PROPOSAL_HEAD.unpack_from(body)
            rest = body[_PROPOSAL_HEAD.size :]
            block = decode_block(rest[length:])
            proposal = decode_proposal(rest[:length])
            if block_id_of(block) != proposal.block_id:
                raise _damaged(path, offset, "a block is not its proposal's")
            return ProposalReceived(proposal, block, timely)
        if kind == _TIMED:
            height, round_, step = _TIMEOUT.unpack(body)
            return TimeoutElapsed(height, round_, Step(step))
    except (TalkooError, struct.error, ValueError) as error:
        raise _damaged(path, offset, str(error)) from None
    raise _damaged(path, offset, f"no record begins with {kind!r}")


def _damaged(path: str, offset: int, why: str) -> Corrupt:
    return Corrupt(
        f"the write-ahead log {path} is damaged at byte {offset} ({why}); the node does not start, because it could "
        "sign twice: restore the file from a backup, or remove it once this validator's key has been rotated",
        code="wal_damaged",
    )
