"""Parameters of a call: from a URI (`height=5`, `tx="…"`, `hash=0x…`) or from JSON, as CometBFT reads them.

In a URI bytes are 0x and hex, or a quoted text whose bytes they are. In JSON, bytes are base64, or hex where the kind
says so. Integers may be quoted; JSON's own are taken, too. What is missing or null has its kind's default.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from talkoo_ledger.rpc.errors import INVALID_PARAMS, RpcError

_INTEGER = re.compile(r"-?[0-9]{1,30}\Z")
INT64_MAX = 2**63 - 1


class Kind(Enum):
    """Value when it is not given: None, 0, False, "" or b""."""

    INTEGER = "optional integer"
    NUMBER = "integer"
    BOOLEAN = "boolean"
    TEXT = "text"
    BYTES = "bytes, base64 in JSON"
    HEX = "bytes, hex in JSON"
    JSON = "JSON"


_DEFAULTS: dict[Kind, Any] = {
    Kind.INTEGER: None,
    Kind.NUMBER: 0,
    Kind.BOOLEAN: False,
    Kind.TEXT: "",
    Kind.BYTES: b"",
    Kind.HEX: b"",
    Kind.JSON: None,
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """`argument`: its name among the arguments of our method, where it is not the same."""

    name: str
    kind: Kind
    argument: str = ""

    @property
    def key(self) -> str:
        return self.argument or self.name


def from_uri(parameters: Sequence[Parameter], given: Mapping[str, str]) -> dict[str, Any]:
    """Raises RpcError (INVALID_PARAMS)."""
    return {
        each.key: _uri_value(each, given[each.name]) if given.get(each.name) else _DEFAULTS[each.kind]
        for each in parameters
    }


def from_json(parameters: Sequence[Parameter], given: Any) -> dict[str, Any]:
    """An object of names or a list in order. Raises RpcError (INVALID_PARAMS)."""
    if given is None:
        given = {}
    if isinstance(given, list):
        if given and len(given) != len(parameters):
            names = ", ".join(each.name for each in parameters)
            raise _wrong(f"expected {len(parameters)} parameters ({names}), got {len(given)}")
        given = dict(zip((each.name for each in parameters), given, strict=False))
    if not isinstance(given, dict):
        raise _wrong("params must be an object of names or a list")
    return {
        each.key: _DEFAULTS[each.kind] if given.get(each.name) is None else _json_value(each, given[each.name])
        for each in parameters
    }


def _wrong(what: str) -> RpcError:
    return RpcError(INVALID_PARAMS, what)


def _uri_value(parameter: Parameter, text: str) -> Any:
    kind = parameter.kind
    is_hex = text[:2].lower() == "0x"
    if kind in (Kind.INTEGER, Kind.NUMBER) and _INTEGER.match(text):
        return _integer(parameter, text)
    if is_hex and kind in (Kind.BYTES, Kind.HEX, Kind.TEXT):
        raw = _unhex(parameter, text[2:])
        return raw if kind is not Kind.TEXT else _text(parameter, raw)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong(
            f"{parameter.name}: {text[:80]!r} is no {kind.value}; texts are quoted, bytes 0x and hex"
        ) from None
    if kind in (Kind.BYTES, Kind.HEX):
        if not isinstance(value, str):
            raise _wrong(f"{parameter.name}: bytes are 0x and hex, or a quoted text")
        return value.encode(errors="surrogatepass")
    return _DEFAULTS[kind] if value is None else _json_value(parameter, value)


def _json_value(parameter: Parameter, value: Any) -> Any:
    kind = parameter.kind
    if kind is Kind.JSON:
        return value
    if kind is Kind.BOOLEAN:
        if isinstance(value, bool):
            return value
        raise _wrong(f"{parameter.name} is true or false")
    if kind in (Kind.INTEGER, Kind.NUMBER):
        if isinstance(value, str) and _INTEGER.match(value):
            return _integer(parameter, value)
        if isinstance(value, int) and not isinstance(value, bool):
            return _in_range(parameter, value)
        raise _wrong(f"{parameter.name} is an integer, best quoted")
    if not isinstance(value, str):
        raise _wrong(f"{parameter.name} is a text")
    if not is_unicode(value):
        raise _wrong(f"{parameter.name} has half a surrogate pair, which is no character")
    if kind is Kind.TEXT:
        return value
    return _unhex(parameter, value) if kind is Kind.HEX else _unbase64(parameter, value)


def is_unicode(text: str) -> bool:
    """JSON can write half a surrogate pair, which no encoding has."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _integer(parameter: Parameter, text: str) -> int:
    return _in_range(parameter, int(text))


def _in_range(parameter: Parameter, value: int) -> int:
    if not -INT64_MAX - 1 <= value <= INT64_MAX:
        raise _wrong(f"{parameter.name} does not fit 64 bits")
    return value


def _unhex(parameter: Parameter, text: str) -> bytes:
    try:
        return binascii.unhexlify(text)
    except ValueError:
        raise _wrong(f"{parameter.name} is not hex: two digits for each byte") from None


def _unbase64(parameter: Parameter, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise _wrong(f"{parameter.name} is not base64") from None


def _text(parameter: Parameter, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _wrong(f"{parameter.name} is not UTF-8") from None
