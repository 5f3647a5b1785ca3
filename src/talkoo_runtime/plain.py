"""Proto messages as plain JSON values, for people and for programs that do not speak proto.

Integers stay integers, bytes become hex, and an enum value its name without the type's prefix, in lower case
(`TASK_PHASE_RUNNING` → `running`). JSON has no NaN and no infinity: both are `None`. Every field is present, in the
order of the `.proto` file.
"""

from __future__ import annotations

import math
import re
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

_HUMP = re.compile(r"(?<!^)(?=[A-Z])")


def plain(message: Message) -> dict[str, Any]:
    """One message, nested ones included. A message field that is not set is `None`."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def enum_word(enum: EnumDescriptor, number: int) -> str:
    """`TASK_PHASE_RUNNING` → `running`; a number that this version does not know stays a number."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    return value.name.removeprefix(_HUMP.sub("_", enum.name).upper() + "_").lower()


def enum_words(enum: EnumDescriptor) -> list[str]:
    return [enum_word(enum, value.number) for value in enum.values]


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
