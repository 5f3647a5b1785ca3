"""CometBFT as the engine: a supervised child under our ledger, which it drives over ABCI and we ask over its RPC."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from talkoo_consensus.encoding import block_id_of, encode_block, encode_commit

from talkoo_core.errors import Corrupt, Failed, NotFound, TalkooError
from talkoo_core.signing import PrivateKey
from talkoo_ledger.abci.beginning import Beginning, beginning_of
from talkoo_ledger.abci.hosted import HostedLedger
from talkoo_ledger.abci.requests import Requests
from talkoo_ledger.abci.server import AbciServer
from talkoo_ledger.application import CheckResult
from talkoo_ledger.comet.documents import block_of, commit_of
from talkoo_ledger.comet.home import (
    check_comet,
    find_binary,
    has_begun,
    home_of,
    write_home,
)
from talkoo_ledger.comet.rpc import CometRpc
from talkoo_ledger.comet.waiting import Waiting
from talkoo_ledger.executor import Executor
from talkoo_ledger.genesis import Genesis
from talkoo_ledger.settings import LedgerSettings
from talkoo_ledger.sign_state import Signer
from talkoo_ledger.snapshotting import SnapshotKeeper
from talkoo_ledger.store import StoredBlock
from talkoo_runtime.child_process import ChildProcess
from talkoo_runtime.clock import Clock
from talkoo_runtime.disk import FolderDisk
from talkoo_runtime.supervision import Background

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
SOCKET_PATH_MAX_BYTES = 100
"""Linux takes 107."""


class CometEngine:
    """`talkoo_ledger.engine.Engine` by CometBFT."""

    def __init__(self, settings: LedgerSettings, ledger: HostedLedger, child: ChildProcess, socket: Path) -> None:
        self.executor: Executor = ledger
        self._snapshots = SnapshotKeeper(
            Path(settings.state_dir), ledger.application, settings.snapshot_interval_blocks
        )
        self.child = child
        # CometBFT answers a connection's calls one after the other, and those with transactions wait while it commits.
        self.rpc = CometRpc(settings.comet.rpc_listen, lambda: self._waiting.connected())
        self.reads = CometRpc(settings.comet.rpc_listen, lambda: None)
        self.server = AbciServer(socket, Requests(ledger, self._snapshots.store, self).answer)
        self.catching_up = True
        self.round = 0
        self._settings = settings
        self._ledger = ledger
        self._waiting = Waiting(ledger, self.rpc)
        self._peers: list[str] = []

    # --- for the Ledger service ---

    def connected(self) -> list[str]:
        return self._peers

    def waiting(self) -> int:
        return len(self._waiting)

    def waits(self, tx_hash: bytes) -> bool:
        return tx_hash in self._waiting

    async def submit(self, txs: Sequence[bytes]) -> list[TalkooError | None]:
        return await self._waiting.submit(txs)

    async def stored_block(self, height: int) -> StoredBlock:
        """Results and events are ours; block and commit are CometBFT's, in the same encoding as our own engine's."""
        stored = self._ledger.store.block(height)
        if stored.block:
            return stored  # from the time of our own engine
        try:
            block_document, commit_document = await asyncio.gather(
                self.reads.call("block", height=str(height)), self.reads.call("commit", height=str(height))
            )
        except Failed as error:
            raise NotFound(f"block {height} is not in CometBFT's store: {error}", code="no_block") from None
        block = block_of(block_document["block"])
        commit = commit_of(commit_document["signed_header"]["commit"])
        if block_id_of(block) != commit.block_id or commit.block_id.hash != stored.events.hash:
            raise Corrupt(
                f"block {height} of CometBFT is not the one that this ledger applied; was its data folder exchanged?",
                code="diverged",
            )
        return replace(stored, block=encode_block(block), commit=encode_commit(commit))

    # --- told by the ABCI requests ---

    def checked(self, data: bytes, result: CheckResult, *, again: bool) -> None:
        self._waiting.checked(data, result, again=again)

    def committed(self, hashes: list[bytes]) -> int:
        self._waiting.committed(hashes)
        height = self._ledger.chain.last_height
        self._snapshots.after_block(height)
        return self._ledger.keep_from(height)

    # --- beside ---

    async def stop(self) -> None:
        """CometBFT first: it would call the end of the ABCI server a crash."""
        await self.child.stop()
        await self.server.stop()
        self._ledger.store.close()

    async def look(self) -> None:
        """What CometBFT knows better: peers, round, whether it catches up. For ever."""
        while True:
            try:
                status, net, consensus = await asyncio.gather(
                    self.reads.call("status"), self.reads.call("net_info"), self.reads.call("consensus_state")
                )
                self.catching_up = bool(status["sync_info"]["catching_up"])
                self._peers = sorted({peer["node_info"]["moniker"] for peer in net["peers"]})
                self.round = int(consensus["round_state"]["height/round/step"].split("/")[1])
            except TalkooError as error:
                self._peers, self.catching_up = [], True
                log.debug("CometBFT's state is not known: %s", error)
            await asyncio.sleep(LOOK_EVERY_S)


async def open_comet(
    settings: LedgerSettings, genesis: Genesis, key: PrivateKey, clock: Clock, background: Background
) -> CometEngine:
    """Start CometBFT under a ledger."""
    check_comet(settings)
    binary = find_binary(settings)
    ledger = HostedLedger(genesis, Path(settings.state_dir), clock, settings.retain_blocks)
    socket = _socket_path(settings)
    home = write_home(settings, genesis, _beginning(settings, ledger, key), key, socket)
    child = ChildProcess("cometbft", [str(binary), "start", "--home", str(home)], home / "log.txt")
    engine = CometEngine(settings, ledger, child, socket)
    await engine.server.start()
    background.start("abci", engine.server.run())
    background.start("cometbft's rpc", engine.rpc.run())
    background.start("cometbft's rpc for reading", engine.reads.run())
    background.start("cometbft's state", engine.look())
    child.start()
    return engine


def _beginning(settings: LedgerSettings, ledger: HostedLedger, key: PrivateKey) -> Beginning:
    """Raises Corrupt (`no_engine`) where CometBFT has decided blocks before and its folder is gone."""
    folder, last = Path(settings.state_dir), ledger.chain.last_height
    begun = has_begun(settings)
    if not begun and not ledger.untouched:
        raise Corrupt(
            f"this ledger stands at block {last}, which CometBFT decided, and {home_of(settings)} is gone; restore "
            f"it, or remove {folder} and join anew",
            code="no_engine",
        )
    signed = Signer(key, ledger.chain.chain_id, FolderDisk(folder)).last if not begun else (0, 0, 0)
    return beginning_of(ledger.genesis, ledger.chain, signed)


def _socket_path(settings: LedgerSettings) -> Path:
    """In the state folder, or below the temporary folder where that path is too long for a socket."""
    path = home_of(settings) / "abci" / "socket"
    if len(str(path).encode()) <= SOCKET_PATH_MAX_BYTES:
        return path
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"talkoo-{name}" / "socket"
