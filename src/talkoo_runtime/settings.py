"""One frozen settings struct per process, read once: a TOML or JSON file, then `TALKOO_<FIELD>` variables over it."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from talkoo_core.errors import InvalidInput, NotFound

T = TypeVar("T", bound=msgspec.Struct)
PREFIX = "TALKOO_"


def load_settings(cls: type[T], path: Path | None, env: Mapping[str, str]) -> T:
    """Read and check the settings of a process.

    Raises NotFound (no such file) or InvalidInput (code `bad_settings`) naming the file and the field.
    """
    values = _read(path) if path is not None else {}
    source = str(path) if path is not None else "the environment"
    fields = {field.name: field for field in msgspec.structs.fields(cls)}
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the settings are {', '.join(sorted(fields))}"
            raise InvalidInput(f"{source}: there is no setting {name!r}; {hint}", code="bad_settings")
    for name, field in fields.items():
        text = env.get(PREFIX + name.upper())
        if text is not None:
            values[name] = _from_text(name, field.type, text)
            _check_variable(name, field.type, values[name])
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{source}: {_explained(str(error))}", code="bad_settings") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no settings file {path}; name one with --settings") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", code="bad_settings") from None
    try:
        values = json.loads(raw) if path.suffix == ".json" else tomllib.loads(raw.decode("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}", code="bad_settings") from None
    if not isinstance(values, dict):
        raise InvalidInput(f"{path}: settings are a table of names and values", code="bad_settings")
    return values


def _from_text(name: str, kind: Any, text: str) -> Any:
    """A variable's text as the field's type: text stays text, anything else is read as JSON."""
    if kind is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise InvalidInput(
            f'{PREFIX}{name.upper()}={text!r} is not a value; write it as JSON, for example 5 or ["a"]',
            code="bad_settings",
        ) from None


def _check_variable(name: str, kind: Any, value: Any) -> None:
    """A wrong variable is named itself, not the file it wins over."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{PREFIX}{name.upper()}: {error}", code="bad_settings") from None


def _explained(message: str) -> str:
    """msgspec's `Expected `int`, got `str` - at `$.port`` with the field first."""
    what, _, where = message.partition(" - at ")
    field = where.strip("`").removeprefix("$.")
    return f"{field}: {what}" if field else what.replace("Object missing required field", "missing setting")
