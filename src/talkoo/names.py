"""Finding a thing by what a person calls it: its id, a unique beginning of the id, or its name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TypeVar

from talkoo_core.errors import InvalidInput, NotFound

T = TypeVar("T")
MIN_PREFIX = 3
"""Fewer characters find nothing: a typing slip must not pick a task."""
MAX_SHOWN = 8


def resolve(
    what: str,
    wanted: str,
    things: Sequence[T],
    *,
    id_of: Callable[[T], str],
    name_of: Callable[[T], str],
    newest: Callable[[T], int] | None = None,
) -> T:
    """The one of `things` that `wanted` means. Raises NotFound or InvalidInput (code `ambiguous`).

    An exact id wins, then an exact name, then a unique beginning of an id (also without its `task-` or `req-`). Where
    several share a name, `newest` decides; without it they are ambiguous.
    """
    for thing in things:
        if id_of(thing) == wanted:
            return thing
    named = [thing for thing in things if name_of(thing) and name_of(thing) == wanted]
    if named and newest is not None:
        return max(named, key=newest)
    found = named or [thing for thing in things if _begins(id_of(thing), wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(f"{id_of(thing)} ({name_of(thing)})" for thing in found[:MAX_SHOWN])
        raise InvalidInput(f"{wanted!r} may be {len(found)} {what}s: {shown}; write more of the id", code="ambiguous")
    raise NotFound(_no_such(what, wanted, [name_of(thing) or id_of(thing) for thing in things]))


def _begins(identity: str, wanted: str) -> bool:
    if len(wanted) < MIN_PREFIX:
        return False
    return identity.startswith(wanted) or identity.partition("-")[2].startswith(wanted)


def _no_such(what: str, wanted: str, known: list[str]) -> str:
    if not known:
        return f"there is no {what} {wanted!r}: there are no {what}s yet"
    close = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"`talkoo {what}s` lists them"
    return f"there is no {what} {wanted!r}; {hint}"
