"""When this node's state is not the others': which module differs, by roots that the decided header proves.

A header's app hash is the root over the modules' roots after the block before. A peer that still has those roots tells
them; they count only if they hash to what more than 2/3 of the voting power has signed, so no peer can put the blame on
a module that is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.errors import Corrupt, TalkooError
from talkoo_ledger import tree
from talkoo_ledger.asks import Asks
from talkoo_ledger.streams import Stream

ANSWER_TIMEOUT_S = 2.0
MAX_MODULES = 256


class Diverged(Corrupt):
    """The others have decided a block that does not follow from this node's state. The node must stop."""

    def __init__(self, height: int, app_hash: bytes, why: str, modules: str = "") -> None:
        """`height`: of the decided block; `app_hash`: what its header says of the state before it."""
        where = f" The state of block {height - 1} differs in {modules}." if modules else ""
        super().__init__(
            f"block {height} is final for the others and not for us: {why}.{where} This node's state has diverged and "
            "it stops; remove its state folder to sync anew, and report this",
            code="diverged",
        )
        self.height = height
        self.app_hash = app_hash
        self.why = why


async def explained(
    diverged: Diverged, own_roots: Mapping[str, bytes], asks: Asks, streams: Mapping[str, Stream]
) -> Diverged:
    """The same error with the modules named, as far as some connected peer can prove them in `ANSWER_TIMEOUT_S`."""
    if tree.app_hash(own_roots) == diverged.app_hash:
        return diverged  # the state is the same; what differs is named in `why`
    asked = [asyncio.ensure_future(_roots(asks, stream, diverged)) for stream in streams.values()]
    try:
        for answer in asyncio.as_completed(asked):
            roots = await answer
            if roots is not None:
                differing = sorted(n for n in roots.keys() | own_roots.keys() if roots.get(n) != own_roots.get(n))
                return Diverged(diverged.height, diverged.app_hash, diverged.why, ", ".join(differing))
    finally:
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    why = f"{diverged.why} (no peer could prove which module differs)"
    return Diverged(diverged.height, diverged.app_hash, why)


async def _roots(asks: Asks, stream: Stream, diverged: Diverged) -> dict[str, bytes] | None:
    """A peer's module roots, if they are what the decided header says; None otherwise."""
    question = service_pb2.Ask(module_roots=service_pb2.ModuleRootsRequest(height=diverged.height - 1))
    try:
        answer = await asks.ask(stream, question, ANSWER_TIMEOUT_S)
    except TalkooError:
        return None  # this peer cannot help; another one may
    told = answer.module_roots.roots
    if not 0 < len(told) <= MAX_MODULES:
        return None
    roots = {each.module: each.root for each in told}
    return roots if tree.app_hash(roots) == diverged.app_hash else None
