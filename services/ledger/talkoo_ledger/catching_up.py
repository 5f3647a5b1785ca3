"""How fetched blocks and snapshots come into the node's loop: as items, each with a future that tells how it went."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from talkoo_consensus.chain import ChainState, check_block
from talkoo_consensus.encoding import block_id_of
from talkoo_consensus.types import Block, BlockId, Commit
from talkoo_consensus.verify import verify_commit

from talkoo_core.errors import InvalidInput
from talkoo_ledger.conversation import Conversation
from talkoo_ledger.divergence import Diverged
from talkoo_ledger.executor import Executor
from talkoo_ledger.header_trust import HeaderTrust, trusted_header
from talkoo_ledger.settings import LedgerSettings
from talkoo_ledger.snapshot_sync import SnapshotSync
from talkoo_ledger.snapshots import Entry
from talkoo_ledger.sync import BlockSync, Decided, Head, Rests


@dataclass(frozen=True, slots=True)
class Fetched:
    """A decided block from a peer."""

    decided: Decided
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class Adopted:
    """The verified state of a later height, to begin behind it."""

    entries: Sequence[Entry]
    chain: ChainState
    commit: Commit
    done: asyncio.Future[None]


class CatchingUp:
    """`put`: into the node's inbox. `execute`, `start_height`: the node's, called from its loop alone."""

    def __init__(
        self,
        settings: LedgerSettings,
        executor: Executor,
        peers: Conversation,
        put: Callable[[Fetched | Adopted], None],
        execute: Callable[[int, BlockId, Block, Commit], None],
        start_height: Callable[[Commit], None],
    ) -> None:
        self.mesh = peers.mesh
        self._executor = executor
        self._peers = peers
        self._put = put
        self._execute = execute
        self._start_height = start_height
        rests = Rests()
        trust = HeaderTrust(self, rests, *trusted_header(settings))
        self.sync = BlockSync(self, rests, SnapshotSync(self, trust, rests).restore, settings.snapshot_sync_blocks)

    @property
    def chain(self) -> ChainState:
        return self._executor.chain

    def next_height(self) -> int:
        return self.chain.height

    def heads(self) -> dict[str, Head]:
        return self._peers.heads()

    def blame(self, organization: str, what: str) -> None:
        self._peers.blame(organization, what)

    async def apply(self, decided: Decided) -> None:
        """Have the loop verify and apply a fetched block. Raises InvalidInput: it is not decided."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(Fetched(decided, done))
        await done

    async def adopt(self, entries: Sequence[Entry], chain: ChainState, commit: Commit) -> None:
        """Have the loop go on behind a snapshot that was verified."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(Adopted(entries, chain, commit, done))
        await done

    def take(self, item: Fetched | Adopted) -> None:
        """From the loop. What fails after the peer's part was verified is ours and stops the node (`diverged`)."""
        lie = None
        if isinstance(item, Adopted):
            self._adopt(item)
        elif item.decided.block.header.height == self.chain.height:
            lie = self._apply(item.decided)
        if item.done.done():  # nobody waits any longer when the service stops
            return
        if lie is None:
            item.done.set_result(None)
        else:
            item.done.set_exception(lie)

    def _adopt(self, adopted: Adopted) -> None:
        if adopted.chain.last_height <= self.chain.last_height:
            return
        self._executor.adopt(adopted.entries, adopted.chain, adopted.commit)
        self._peers.members_may_have_changed()
        self._start_height(adopted.commit)

    def _apply(self, fetched: Decided) -> InvalidInput | None:
        """The lie that the block is decided; None: it was applied. Raises Diverged."""
        block, commit = fetched.block, fetched.commit
        block_id = block_id_of(block)
        try:
            verify_commit(self.chain.chain_id, self.chain.validators, block_id, block.header.height, commit)
        except InvalidInput as lie:
            return lie
        try:
            check_block(self.chain, block, self._executor.evidence.check_decided)
        except InvalidInput as error:
            raise Diverged(block.header.height, block.header.app_hash, error.message) from None
        self._execute(commit.round, block_id, block, commit)
        self._start_height(commit)
        return None
