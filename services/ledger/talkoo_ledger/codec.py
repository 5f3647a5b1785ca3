"""Turns records and messages into their proto counterparts and back, field by field, by the proto descriptors.

The structs of `messages` and `records` carry the names of the proto fields; a difference between the two is found when
this module is imported, not when a value is first met.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any, TypeVar

import msgspec
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message as Proto

from talkoo_ledger import messages, records

T = TypeVar("T", bound=msgspec.Struct)

_STRUCTS: dict[str, type[msgspec.Struct]] = {
    name: value
    for module in (messages, records)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, msgspec.Struct)
}


class _Field(msgspec.Struct, frozen=True):
    name: str
    repeated: bool
    struct: type[msgspec.Struct] | None
    optional: bool
    enum: type[IntEnum] | None
    default: Any


@cache
def _plan(struct: type[msgspec.Struct]) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(struct)
    plan = []
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        arguments = [each for each in typing.get_args(hint) if each is not type(None) and each is not Ellipsis]
        inner = arguments[0] if arguments else hint
        is_struct = isinstance(inner, type) and issubclass(inner, msgspec.Struct)
        plan.append(
            _Field(
                field.name,
                repeated=typing.get_origin(hint) is tuple,
                struct=inner if is_struct else None,
                optional=type(None) in typing.get_args(hint),
                enum=inner if isinstance(inner, type) and issubclass(inner, IntEnum) else None,
                default=field.default,
            )
        )
    return tuple(plan)


def fill(proto: Any, value: msgspec.Struct) -> None:
    """Write a struct into an empty proto message of the same name."""
    for field in _plan(type(value)):
        item = getattr(value, field.name)
        if field.struct is not None:
            if field.repeated:
                target = getattr(proto, field.name)
                for each in item:
                    fill(target.add(), each)
            elif item is not None and item != field.default:
                nested = getattr(proto, field.name)
                nested.SetInParent()
                fill(nested, item)
        elif field.repeated:
            getattr(proto, field.name).extend(item)
        elif item != field.default:
            setattr(proto, field.name, item)


def read(proto: Any, struct: type[T]) -> T:
    """Read a proto message into the struct of the same name."""
    values: dict[str, Any] = {}
    for field in _plan(struct):
        item = getattr(proto, field.name)
        if field.struct is not None:
            if field.repeated:
                values[field.name] = tuple(read(each, field.struct) for each in item)
            elif not field.optional or proto.HasField(field.name):
                values[field.name] = read(item, field.struct)
        elif field.repeated:
            values[field.name] = tuple(item)
        else:
            values[field.name] = item if field.enum is None else field.enum(item)
    return struct(**values)


def struct_of(descriptor: Descriptor) -> type[msgspec.Struct]:
    return _STRUCTS[descriptor.name]


def encode(value: msgspec.Struct, proto_type: Callable[[], Proto]) -> bytes:
    proto = proto_type()
    fill(proto, value)
    return proto.SerializeToString(deterministic=True)


def check_same_fields(descriptor: Descriptor) -> None:
    """Assert that a struct and its proto message have the same fields, nested ones included."""
    struct = struct_of(descriptor)
    ours = {field.name for field in _plan(struct)}
    theirs = {field.name for field in descriptor.fields}
    assert ours == theirs, f"{descriptor.name}: proto and struct differ in {sorted(ours ^ theirs)}"
    for field in descriptor.fields:
        if field.message_type is not None:
            check_same_fields(field.message_type)
