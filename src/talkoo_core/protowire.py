"""The few rules of protobuf's wire format that canonical bytes need: fields in order, defaults left out.

Hashes and signatures cover these bytes, so they are written here by hand rather than by a runtime whose output may
change between versions. The reader refuses what it does not know; `decode` functions built on it re-encode and compare,
so that there is exactly one byte string for each value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from talkoo_core.errors import Corrupt

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
_MAX_VARINT_BYTES: Final = 10
_UINT64: Final = 1 << 64
_ONE_BYTE: Final = tuple(bytes((value,)) for value in range(0x80))
"""Most tags, lengths and numbers are that small."""


def varint(value: int) -> bytes:
    """A base-128 varint; negative values as 64-bit two's complement, as int32 and int64 fields have them."""
    if 0 <= value <= 0x7F:
        return _ONE_BYTE[value]
    value %= _UINT64
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def int_field(number: int, value: int) -> bytes:
    """An int32, int64, uint32, uint64, bool or enum field; nothing for 0."""
    return _tag(number, VARINT) + varint(value) if value else b""


def fixed_field(number: int, value: int) -> bytes:
    """An sfixed64 field; nothing for 0."""
    return _tag(number, FIXED64) + (value % _UINT64).to_bytes(8, "little") if value else b""


def bytes_field(number: int, value: bytes) -> bytes:
    """A bytes or string field; nothing when empty."""
    return message_field(number, value) if value else b""


def message_field(number: int, body: bytes) -> bytes:
    """An embedded message that is there even when empty (gogoproto's non-nullable, or an element of a list)."""
    return _tag(number, BYTES) + varint(len(body)) + body


def delimited(body: bytes) -> bytes:
    return varint(len(body)) + body


def _corrupt(what: str, why: str) -> Corrupt:
    return Corrupt(f"the bytes are not a {what}: {why}", code="malformed")


def _read_varint(data: bytes, at: int, what: str) -> tuple[int, int]:
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        if at + count >= len(data):
            raise _corrupt(what, "they end within a number")
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if value >= _UINT64:
                break
            return value, at + count + 1
    raise _corrupt(what, "a number is longer than 64 bits")


class Fields:
    """The fields of one message, read. Raises Corrupt (`malformed`) on what the message does not have."""

    def __init__(self, data: bytes, what: str, wire_types: Mapping[int, int]) -> None:
        self.what = what
        self._values: dict[int, list[int | bytes]] = {}
        at, end = 0, len(data)
        while at < end:
            tag, at = (data[at], at + 1) if data[at] < 0x80 else _read_varint(data, at, what)
            number, wire_type = tag >> 3, tag & 7
            if wire_types.get(number) != wire_type:
                raise _corrupt(what, f"it has no field {number} of wire type {wire_type}")
            value: int | bytes
            if wire_type == FIXED64:
                value = 8
            elif at < end and data[at] < 0x80:
                value, at = data[at], at + 1
            else:
                value, at = _read_varint(data, at, what)
            if wire_type != VARINT:
                length = int(value)
                if length > end - at:
                    raise _corrupt(what, f"field {number} ends beyond them")
                value, at = data[at : at + length], at + length
            held = self._values.get(number)
            if held is None:
                self._values[number] = [value]
            else:
                held.append(value)

    def fail(self, why: str) -> Corrupt:
        return _corrupt(self.what, why)

    def _last(self, number: int) -> int | bytes | None:
        values = self._values.get(number)
        return None if values is None else values[-1]

    def integer(self, number: int, *, lowest: int, highest: int) -> int:
        """A varint field as a signed 64-bit integer within bounds; 0 when missing."""
        value = self._last(number) or 0
        assert isinstance(value, int)
        signed = value - _UINT64 if value >= _UINT64 // 2 else value
        if not lowest <= signed <= highest:
            raise self.fail(f"field {number} is {signed}; it must be {lowest} to {highest}")
        return signed

    def blob(self, number: int, *, longest: int) -> bytes:
        value = self._last(number) or b""
        assert isinstance(value, bytes)
        if len(value) > longest:
            raise self.fail(f"field {number} has {len(value)} bytes; at most {longest} are read")
        return value

    def message(self, number: int) -> bytes:
        """The bytes of an embedded message; empty when missing."""
        value = self._last(number) or b""
        assert isinstance(value, bytes)
        return value

    def repeated(self, number: int, *, most: int) -> list[bytes]:
        values = self._values.get(number, [])
        if len(values) > most:
            raise self.fail(f"field {number} occurs {len(values)} times; at most {most} are read")
        return [value for value in values if isinstance(value, bytes)]
