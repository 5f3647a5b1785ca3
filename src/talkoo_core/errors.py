"""Error families. Asserts catch our own bugs; these answer other people's input.

Each message says what was wrong and what to do. A family decides the gRPC status and the exit status; `code` is a
stable word for programs (`insufficient_funds`), more precise than the family where a caller may want to branch on it.
"""

from __future__ import annotations

from typing import ClassVar


class TalkooError(Exception):
    """Base of every error that is an answer to somebody. `family` names the class on the wire."""

    family: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else self.family

    def __str__(self) -> str:
        return self.message


class InvalidInput(TalkooError):
    """The request itself is wrong: an unknown field, a wrong type, a malformed transaction."""

    family = "invalid_input"
    exit_status = 2


class NotFound(TalkooError):
    """Nothing has that name."""

    family = "not_found"
    exit_status = 3


class Conflict(TalkooError):
    """The request is well formed but does not fit the present state: a replay, a double spend, a wrong attempt."""

    family = "conflict"
    exit_status = 4


class InsufficientFunds(TalkooError):
    """An account holds less than the request needs."""

    family = "insufficient_funds"
    exit_status = 5


class PermissionDenied(TalkooError):
    """The caller is known but may not do this, or is not known at all."""

    family = "permission_denied"
    exit_status = 6


class Unavailable(TalkooError):
    """The other side cannot be reached or is not ready; the same call may succeed later."""

    family = "unavailable"
    exit_status = 7


class Exhausted(TalkooError):
    """A bound was reached: a full disk, a full queue, a message over its size."""

    family = "exhausted"
    exit_status = 8


class Corrupt(TalkooError):
    """Stored or received bytes are not what their hash or their format says."""

    family = "corrupt"
    exit_status = 9


class Failed(TalkooError):
    """The work itself failed: the user's model raised, a loss became NaN, a task ended without a result."""

    family = "failed"
    exit_status = 10


class Internal(TalkooError):
    """Our own fault. The message says where the details are."""

    family = "internal"
    exit_status = 70


FAMILIES: dict[str, type[TalkooError]] = {
    family.family: family
    for family in (
        InvalidInput,
        NotFound,
        Conflict,
        InsufficientFunds,
        PermissionDenied,
        Unavailable,
        Exhausted,
        Corrupt,
        Failed,
        Internal,
    )
}


def error_of(family: str, message: str, code: str | None = None) -> TalkooError:
    """Rebuild an error that crossed the wire; an unknown family becomes `Internal`."""
    return FAMILIES.get(family, Internal)(message, code=code)
