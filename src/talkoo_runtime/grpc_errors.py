"""Error families on the wire: a gRPC status, and the family and code in trailing metadata."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import grpc

from talkoo_core.errors import (
    Conflict,
    Corrupt,
    Exhausted,
    Failed,
    InsufficientFunds,
    Internal,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TalkooError,
    Unavailable,
    error_of,
)

log = logging.getLogger(__name__)
FAMILY_KEY = "talkoo-error-family"
CODE_KEY = "talkoo-error-code"
MAX_MESSAGE_BYTES = 2000
"""Metadata over 8 KiB would cost the call its error; a byte of UTF-8 may take three there."""

_STATUS: dict[type[TalkooError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.ABORTED,
    InsufficientFunds: grpc.StatusCode.FAILED_PRECONDITION,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Corrupt: grpc.StatusCode.DATA_LOSS,
    Failed: grpc.StatusCode.UNKNOWN,
    Internal: grpc.StatusCode.INTERNAL,
}
_FAMILY = {status: family for family, status in _STATUS.items()} | {
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
}


def status_of(error: TalkooError) -> grpc.StatusCode:
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


async def abort_with(context: Any, error: TalkooError) -> NoReturn:
    """End a server call with our error."""
    metadata = ((FAMILY_KEY, error.family), (CODE_KEY, error.code))
    await context.abort(status_of(error), _bounded(error.message), trailing_metadata=metadata)
    raise AssertionError("abort returns never")


def _bounded(message: str) -> str:
    raw = message.encode("utf-8", "replace")
    return message if len(raw) <= MAX_MESSAGE_BYTES else raw[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "…"


def error_from_rpc(error: grpc.aio.AioRpcError) -> TalkooError:
    """Our error again, from a failed call."""
    trailing = {key: value for key, value in (error.trailing_metadata() or ()) if isinstance(value, str)}
    message = error.details() or error.code().name
    family = trailing.get(FAMILY_KEY)
    if family is not None:
        return error_of(family, message, trailing.get(CODE_KEY))
    kind = _FAMILY.get(error.code(), Internal)
    if kind is Unavailable:
        return Unavailable(_connection_trouble(error, message), code="unreachable")
    return kind(message)


def raise_from_rpc(error: grpc.aio.AioRpcError) -> NoReturn:
    raise error_from_rpc(error) from error


def _connection_trouble(error: grpc.aio.AioRpcError, message: str) -> str:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer within the time allowed"
    if "SSL" in message or "certificate" in message.lower() or "handshake" in message.lower():
        return f"the connection was refused: the other side does not accept our certificate, or we not its ({message})"
    return message
