"""Error families on the wire: a gRPC status, and the family and code in trailing metadata."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

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

T = TypeVar("T")

log = logging.getLogger(__name__)
FAMILY_KEY = "talkoo-error-family"
CODE_KEY = "talkoo-error-code"
MAX_MESSAGE_BYTES = 2000
"""Metadata over 8 KiB would cost the call its error; a byte of UTF-8 may take three there."""

_STATUS_LOST = "Internal error from Core"
"""What grpc.aio says of a call that ended while a message was sent (https://github.com/grpc/grpc/issues/36066)."""

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
    """Our error again, from a failed call. Unavailable, too, where the status was lost: another try tells more."""
    trailing = {key: value for key, value in (error.trailing_metadata() or ()) if isinstance(value, str)}
    message = error.details() or error.code().name
    family = trailing.get(FAMILY_KEY)
    if family is not None:
        return error_of(family, message, trailing.get(CODE_KEY))
    if _is_lost(error):
        return Unavailable("the call broke off while it was being sent", code="unreachable")
    kind = _FAMILY.get(error.code(), Internal)
    if kind is Unavailable:
        return Unavailable(_connection_trouble(error, message), code="unreachable")
    return kind(message)


@contextmanager
def first_status(call: Any) -> Iterator[None]:
    """For calls that send a stream: what they raise in here says what the other side said.

    A server that refuses in the middle of a stream answers while a message is being sent; grpc.aio then overwrites the
    answer with an error of its own.
    """
    first: list[grpc.aio.AioRpcError] = []
    call.add_done_callback(lambda ended: first.append(_status_now(ended)))
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if _is_lost(error) and first:
            raise first[0] from error
        raise


async def answer_of(call: Any) -> Any:
    """The answer to a stream of requests. Raises what the other side said, as `first_status`."""
    with first_status(call):
        return await call


def _status_now(call: Any) -> grpc.aio.AioRpcError:
    """Of a call that has just ended. Its coroutines give the status, and do not wait for it any more."""
    return grpc.aio.AioRpcError(
        _at_once(call.code()), grpc.aio.Metadata(), _at_once(call.trailing_metadata()), _at_once(call.details())
    )


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("the call has not ended")


def _is_lost(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _STATUS_LOST


def raise_from_rpc(error: grpc.aio.AioRpcError) -> NoReturn:
    raise error_from_rpc(error) from error


def _connection_trouble(error: grpc.aio.AioRpcError, message: str) -> str:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer within the time allowed"
    if "SSL" in message or "certificate" in message.lower() or "handshake" in message.lower():
        return f"the connection was refused: the other side does not accept our certificate, or we not its ({message})"
    return message
