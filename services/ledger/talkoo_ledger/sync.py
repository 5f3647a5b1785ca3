"""Catching up: decided blocks from several peers at once, each held against its commit before it is applied.

Peers may lie: about how far they are, with wrong blocks or commits, with no answer or a slow one. Whoever does is left
alone for a while and the same heights are asked of another; a lie is also blamed. What is asked for and not yet applied
is bounded by `WINDOWS` answers of `answers.ANSWER_BYTES`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.chain import ChainState
from talkoo_consensus.encoding import decode_block, decode_commit
from talkoo_consensus.types import Block, Commit

from talkoo_core.errors import Corrupt, InvalidInput, TalkooError, Unavailable
from talkoo_ledger.answers import BLOCKS_PER_ANSWER
from talkoo_ledger.peers import Mesh

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
LOOK_PEERS = 4
"""With more peers than this a block takes longer to be decided by all, and is looked for more rarely."""
FAR_BEHIND = 2
"""Heights; one that is less far behind is likely to get there by itself, and fetches only when it stands still."""
WINDOWS = 4
"""Answers under way at a time; from one peer at most `WINDOWS_OF_ONE`."""
WINDOWS_OF_ONE = 2
ANSWER_TIMEOUT_S = 5.0
LEAST_BYTES_PER_S = 64 * 1024
"""Of an answer that takes longer than `SLOW_S`; a slower peer is left for another."""
SLOW_S = 2.0
REST_S = 5.0
"""So long a peer without a good answer is not asked again; doubled each time."""
REST_LIAR_S = 60.0
REST_MAX_S = 3_600.0
RESTORE_AGAIN_S = 5.0
"""After an attempt to begin with a snapshot."""


class Lie(InvalidInput):
    """A peer sent what no honest node sends when asked for decided blocks."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a peer says of itself: the last height it decided, and the lowest whose block it holds (0: none)."""

    decided: int
    base: int

    def holds(self, height: int) -> bool:
        return max(self.base, 1) <= height <= self.decided


@dataclass(frozen=True, slots=True)
class Decided:
    """A block that somebody says is decided, to be verified by who applies it."""

    organization: str
    block: Block
    commit: Commit


class Follows(Protocol):
    """What catching up needs of the node."""

    mesh: Mesh

    @property
    def chain(self) -> ChainState: ...

    def next_height(self) -> int:
        """The height that is to be applied next."""

    def heads(self) -> dict[str, Head]:
        """Of the connected peers."""

    async def apply(self, decided: Decided) -> None:
        """Verify and apply a block of the next height; one decided meanwhile is let go. Raises InvalidInput: a lie."""

    def blame(self, organization: str, what: str) -> None:
        """Count a fault of a peer."""


@dataclass(slots=True)
class _Window:
    """Heights asked of one peer."""

    organization: str
    first: int
    last: int
    answer: asyncio.Task[list[Decided]]


@dataclass(slots=True)
class _Rest:
    until_s: float = 0.0
    times: int = 0


class Rests:
    """Peers that are not asked for a while, longer each time until one of their answers is good."""

    def __init__(self) -> None:
        self._rests: dict[str, _Rest] = {}

    def may_be_asked(self, organization: str) -> bool:
        rest = self._rests.get(organization)
        return rest is None or rest.until_s <= asyncio.get_running_loop().time()

    def times(self, organization: str) -> int:
        """How often in a row it had to rest."""
        rest = self._rests.get(organization)
        return 0 if rest is None else rest.times

    def rest(self, organization: str, first_s: float = REST_S) -> None:
        rest = self._rests.setdefault(organization, _Rest())
        pause_s = min(first_s * 2 ** min(rest.times, 16), REST_MAX_S)
        rest.until_s, rest.times = asyncio.get_running_loop().time() + pause_s, rest.times + 1

    def liar(self, organization: str) -> None:
        self.rest(organization, REST_LIAR_S)

    def good(self, organization: str) -> None:
        self._rests.pop(organization, None)

    def keep_only(self, members: Collection[str]) -> None:
        for name in [name for name in self._rests if name not in members]:
            del self._rests[name]


class BlockSync:
    """`active` while blocks are being fetched."""

    def __init__(
        self, node: Follows, rests: Rests, restore: Callable[[], Awaitable[bool]], restore_blocks: int
    ) -> None:
        """`restore`: begin with a snapshot; a new node does so that is `restore_blocks` behind (0: never for that)."""
        self.active = False
        self._node = node
        self._rests = rests
        self._restore = restore
        self._restore_blocks = restore_blocks
        self._restored_s = -RESTORE_AGAIN_S
        self._height_before = 0

    async def run(self) -> None:
        """Look whether peers are ahead, and fetch what they have decided. Forever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S * max(1.0, len(self._node.mesh.streams) / LOOK_PEERS))
            height = self._node.next_height()
            stood_still, self._height_before = height == self._height_before, height
            behind = max((head.decided + 1 - height for head in self._node.heads().values()), default=0)
            if behind >= FAR_BEHIND or (behind > 0 and stood_still):
                await self._restore_if_better(height, behind)
                await self.catch_up()

    async def _restore_if_better(self, height: int, behind: int) -> None:
        """With a snapshot, when nobody has kept the next block, or a new node has too many before it."""
        heads = self._node.heads().values()
        lost = not any(head.holds(height) for head in heads) and any(head.base > height for head in heads)
        new = height == 1 and 0 < self._restore_blocks <= behind
        now = asyncio.get_running_loop().time()
        if not (lost or new) or now - self._restored_s < RESTORE_AGAIN_S:
            return
        self.active = True
        try:
            await self._restore()
        finally:
            self.active, self._restored_s = False, asyncio.get_running_loop().time()

    async def catch_up(self) -> None:
        """Until nobody who may be asked has a block that we lack."""
        windows: list[_Window] = []
        self.active = True
        try:
            while True:
                self._ask_more(windows)
                if not windows or windows[0].first > self._node.next_height():
                    return  # nobody may be asked for the next one
                window = windows.pop(0)
                if not await self._take(window):
                    for late in [w for w in windows if w.organization == window.organization]:
                        late.answer.cancel()
                        windows.remove(late)
        finally:
            self.active = False
            for window in windows:
                window.answer.cancel()
            await asyncio.gather(*(window.answer for window in windows), return_exceptions=True)

    def _ask_more(self, windows: list[_Window]) -> None:
        """Ask for the first gaps in what is under way, in order, until enough is under way."""
        first = self._node.next_height()
        place = 0
        while len(windows) < WINDOWS or windows[0].first > self._node.next_height():
            while place < len(windows) and windows[place].first <= first:
                first, place = max(first, windows[place].last + 1), place + 1
            until = windows[place].first - 1 if place < len(windows) else first + BLOCKS_PER_ANSWER - 1
            asked = self._ask(windows, first, min(until, first + BLOCKS_PER_ANSWER - 1))
            if asked is None:
                return
            windows.insert(place, asked)

    def _ask(self, windows: list[_Window], first: int, last: int) -> _Window | None:
        """Of the peers that say they hold `first`, the least busy one."""
        busy = Counter(window.organization for window in windows)
        able = {
            name: head
            for name, head in self._node.heads().items()
            if head.holds(first)
            and busy[name] < WINDOWS_OF_ONE
            and self._rests.may_be_asked(name)
            and name in self._node.mesh.streams
        }
        if not able:
            return None
        name = min(able, key=lambda n: (busy[n], self._rests.times(n), n))
        last = min(last, able[name].decided)
        return _Window(name, first, last, asyncio.create_task(self._fetch(name, first, last)))

    async def _fetch(self, organization: str, first: int, last: int) -> list[Decided]:
        """Ask and decode. Raises Unavailable (no answer, or a slow one), Lie."""
        loop = asyncio.get_running_loop()
        stream = self._node.mesh.streams.get(organization)
        if stream is None:
            raise Unavailable(f"the stream to {organization} ended", code="connection_lost")
        began = loop.time()
        question = service_pb2.Ask(blocks=service_pb2.BlocksRequest(from_height=first, to_height=last))
        answer = await self._node.mesh.asks.ask(stream, question, ANSWER_TIMEOUT_S)
        took_s, size = loop.time() - began, answer.ByteSize()
        decided = await asyncio.to_thread(_decoded, organization, answer.blocks.blocks, first, last)
        if took_s > SLOW_S and size < LEAST_BYTES_PER_S * took_s:
            raise Unavailable(f"{organization} sent {size} bytes in {took_s:.1f} s", code="slow_peer")
        return decided

    async def _take(self, window: _Window) -> bool:
        """Apply a window's blocks in order. False: its peer is not to be asked for now."""
        name = window.organization
        try:
            for decided in await window.answer:
                if decided.block.header.height >= self._node.next_height():
                    await self._node.apply(decided)
        except InvalidInput as error:
            self._node.blame(name, f"sent wrong blocks {window.first}-{window.last}: {error}")
            self._node.mesh.book.distrust(name)
            self._rests.liar(name)
            return False
        except TalkooError as error:
            if error.code in ("diverged", "disk_full"):
                raise
            log.info("blocks %d-%d are asked of another peer: %s", window.first, window.last, error)
            self._rests.rest(name)
            return False
        self._rests.good(name)
        return True


def _decoded(organization: str, raws: Sequence[service_pb2.RawBlock], first: int, last: int) -> list[Decided]:
    """Blocks `first`, `first + 1`, … Raises Lie, Unavailable."""
    if not raws:
        raise Unavailable(f"{organization} does not hold block {first}, as it said", code="no_block")
    if len(raws) > last - first + 1:
        raise Lie(f"{len(raws)} blocks for {first} to {last}", code="wrong_blocks")
    decided = []
    for height, raw in enumerate(raws, first):
        try:
            block, commit = decode_block(raw.block), decode_commit(raw.commit)
        except (Corrupt, InvalidInput) as error:
            raise Lie(f"block {height}: {error}", code="wrong_blocks") from None
        if block.header.height != height:
            raise Lie(f"block {block.header.height} for block {height}", code="wrong_blocks")
        decided.append(Decided(organization, block, commit))
    return decided
