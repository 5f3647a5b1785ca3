"""Pydantic models of the HTTP edge. Those of the answers are made from the proto messages, so they cannot drift."""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field, create_model

from talkoo_runtime.plain import enum_words, plain

MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_WAIT_S = 60.0
MAX_INPUT_BYTES = 1 << 20
MAX_TRANSACTION_CHARS = 4 * 1024 * 1024

_SCALARS: dict[int, Any] = {
    FieldDescriptor.TYPE_BOOL: bool,
    FieldDescriptor.TYPE_STRING: str,
    FieldDescriptor.TYPE_BYTES: str,
    FieldDescriptor.TYPE_FLOAT: float | None,
    FieldDescriptor.TYPE_DOUBLE: float | None,
}


class Strict(BaseModel):
    """Unknown fields are refused: a mistyped one must not be ignored."""

    model_config = ConfigDict(extra="forbid")


class Page(Strict):
    """Query of a list."""

    limit: int = Field(DEFAULT_PAGE, ge=1, le=MAX_PAGE, description="At most so many.")
    after: str = Field("", max_length=256, description="`next` of the page before.")
    reverse: bool = Field(False, description="Last key first.")


class BlockRange(Strict):
    """Query of blocks."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    from_height: int = Field(0, ge=0, alias="from", description="First height; 0: the newest `limit` blocks.")
    limit: int = Field(20, ge=1, le=MAX_PAGE)


class Wait(Strict):
    """Query of a transaction."""

    wait: float = Field(0, ge=0, le=MAX_WAIT_S, description="Seconds to wait until it is final.")


class LogQuery(Strict):
    """Query of logs."""

    follow: bool = Field(False, description="Stay, as server-sent events, until the task has ended.")
    tail: int = Field(0, ge=0, le=1_000_000, description="Only the last lines of each node; 0: all that are kept.")


class AuditQuery(Strict):
    """Query of audits."""

    task_id: str = Field("", max_length=256)


class Nothing(Strict):
    """No query."""


class SignedTransaction(Strict):
    """A transaction signed by its sender: it needs no token."""

    tx: str = Field(min_length=1, max_length=MAX_TRANSACTION_CHARS, description="SignedTx of tx.proto, base64.")


class InferBody(Strict):
    """The input of a paid request; its hash is the one that the ledger holds."""

    version: str = Field(min_length=1, max_length=256)
    input_json: str = Field(min_length=1, max_length=MAX_INPUT_BYTES, description="Exactly the bytes that were hashed.")


class TransactionHash(BaseModel):
    hash: str = Field(description="SHA-256 of the transaction, hex.")


class Health(BaseModel):
    ok: bool
    detail: str = ""


class Problem(BaseModel):
    """RFC 9457 problem details, with Talkoo's error family and code."""

    type: str
    title: str
    status: int
    detail: str
    family: str
    code: str


@functools.cache
def model_of(descriptor: Descriptor) -> type[BaseModel]:
    """The pydantic model of a message, as `talkoo_runtime.plain` prints it."""
    fields: dict[str, Any] = {field.name: _annotation(field) for field in descriptor.fields}
    return create_model(_title(descriptor), __config__=ConfigDict(protected_namespaces=()), **fields)


@functools.cache
def page_of(descriptor: Descriptor) -> type[BaseModel]:
    """A page of messages: `items`, and `next` to go on with `after`."""
    item = model_of(descriptor)
    return create_model(
        f"{_title(descriptor)}Page",
        items=(list[item], ...),  # type: ignore[valid-type]
        next=(str | None, None),
        height=(int, 0),
    )


def checked(message: Message) -> BaseModel:
    """A message as its model, checked on the way out as inputs are on the way in."""
    return model_of(message.DESCRIPTOR).model_validate(plain(message))


def _title(descriptor: Descriptor) -> str:
    return str(descriptor.name)


def _annotation(field: FieldDescriptor) -> tuple[Any, Any]:
    kind: Any
    extra: dict[str, Any] = {}
    if field.message_type is not None:
        kind = model_of(field.message_type)
    elif field.enum_type is not None:
        kind, extra = str, {"enum": enum_words(field.enum_type)}
    else:
        kind = _SCALARS.get(field.type, int)
        if field.type == FieldDescriptor.TYPE_BYTES:
            extra = {"format": "hex"}
    if field.is_repeated:
        return list[kind], Field(...)
    if field.message_type is not None:
        return kind | None, Field(...)
    return kind, Field(..., json_schema_extra=extra or None)
