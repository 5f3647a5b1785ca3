"""CometBFT as the engine: a supervised child under our ledger, which it drives over ABCI and we ask over its RPC.

A client's transaction goes to CometBFT's mempool by its RPC; whether it may wait comes back as CometBFT's own CheckTx
to our application. What our clients sent and is not final is remembered here, and given to CometBFT again when it was
started anew, because its mempool does not outlive it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from talkoo_consensus.encoding import block_id_of, encode_block, encode_commit

from talkoo_core.errors import Conflict, Corrupt, Exhausted, Failed, InvalidInput, TalkooError, Unavailable, error_of
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
from talkoo_ledger.executor import Executor
from talkoo_ledger.genesis import Genesis
from talkoo_ledger.mempool import MAX_TXS
from talkoo_ledger.settings import LedgerSettings
from talkoo_ledger.sign_state import Signer
from talkoo_ledger.snapshotting import SnapshotKeeper
from talkoo_ledger.store import StoredBlock
from talkoo_runtime.child_process import ChildProcess
from talkoo_runtime.clock import Clock
from talkoo_runtime.disk import FolderDisk
from talkoo_runtime.supervision import Background
from talkoo_runtime.transactions import transaction_hash

log = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 10.0
"""How long a client waits for CometBFT's check, a restart of CometBFT included."""
LOOK_EVERY_S = 1.0
SOCKET_PATH_MAX_BYTES = 100
"""Linux takes 107."""
IN_CACHE = "tx already exists in cache"


class CometEngine:
    """`talkoo_ledger.engine.Engine` by CometBFT."""

    def __init__(self, settings: LedgerSettings, ledger: HostedLedger, child: ChildProcess, socket: Path) -> None:
        self.executor: Executor = ledger
        self._snapshots = SnapshotKeeper(
            Path(settings.state_dir), ledger.application, settings.snapshot_interval_blocks
        )
        self.child = child
        # CometBFT answers a connection's calls one after the other, and those with transactions wait while it commits.
        self.rpc = CometRpc(settings.comet.rpc_listen, self._connected)
        self.reads = CometRpc(settings.comet.rpc_listen, lambda: None)
        self.server = AbciServer(socket, Requests(ledger, self._snapshots.store, self).answer)
        self.catching_up = True
        self.round = 0
        self._settings = settings
        self._ledger = ledger
        self._asked: dict[bytes, tuple[bytes, asyncio.Future[CheckResult]]] = {}
        """Not checked yet: bytes, and who waits for the check."""
        self._waiting: dict[bytes, bytes] = {}
        """Checked and not final: bytes where our own clients sent them, empty for those of other nodes."""
        self._peers: list[str] = []
        self._resending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- for the Ledger service ---

    def connected(self) -> list[str]:
        return self._peers

    def waiting(self) -> int:
        return len(self._waiting)

    def waits(self, tx_hash: bytes) -> bool:
        return tx_hash in self._waiting

    async def submit(self, txs: Sequence[bytes]) -> list[TalkooError | None]:
        """In order; each answer comes when CometBFT has asked our application about it."""
        return list(await asyncio.gather(*(self._submit(data) for data in txs)))

    async def stored_block(self, height: int) -> StoredBlock:
        """Results and events are ours; block and commit are CometBFT's, in the same encoding as our own engine's."""
        stored = self._ledger.store.block(height)
        if stored.block:
            return stored  # from the time of our own engine
        block_document, commit_document = await asyncio.gather(
            self.reads.call("block", height=str(height)), self.reads.call("commit", height=str(height))
        )
        block = block_of(block_document["block"])
        commit = commit_of(commit_document["signed_header"]["commit"])
        if block_id_of(block) != commit.block_id or commit.block_id.hash != stored.events.hash:
            raise Corrupt(
                f"block {height} of CometBFT is not the one that this ledger applied; was its data folder exchanged?",
                code="diverged",
            )
        return replace(stored, block=encode_block(block), commit=encode_commit(commit))

    # --- transactions ---

    async def _submit(self, data: bytes) -> TalkooError | None:
        tx_hash = transaction_hash(data)
        if tx_hash in self._waiting:
            self._waiting[tx_hash] = data
            return None
        if self._ledger.store.tx_result(tx_hash) is not None:
            return _refusal(self._ledger.application.check_tx(data)) or _known()
        if tx_hash not in self._asked:
            if len(self._asked) + len(self._waiting) >= 2 * MAX_TXS:
                return Exhausted(
                    "too many transactions wait for a block; send it again in a moment", code="mempool_full"
                )
            self._asked[tx_hash] = (data, asyncio.get_running_loop().create_future())
            if self.rpc.connected:
                self._start(self._give(tx_hash, data))
        checked = self._asked[tx_hash][1]
        try:
            result = await asyncio.wait_for(asyncio.shield(checked), CHECK_TIMEOUT_S)
        except TimeoutError:
            return Unavailable(
                "CometBFT did not take the transaction in time; it may still become final, ask for its result",
                code="engine_unavailable",
            )
        except TalkooError as error:
            return error
        finally:
            if checked.done() or checked.cancelled():
                self._asked.pop(tx_hash, None)
        return _refusal(result)

    async def _give(self, tx_hash: bytes, data: bytes) -> None:
        """To CometBFT's mempool. Its own refusals (full, too large, known) come at once, ours through `checked`."""
        try:
            await self.rpc.call("broadcast_tx_async", tx=base64.b64encode(data).decode())
        except Unavailable:
            return  # it is given again after the next connection
        except TalkooError as error:
            asked = self._asked.get(tx_hash)
            if asked is None or asked[1].done() or (IN_CACHE in error.message and not self._is_known(tx_hash)):
                return  # known and not checked yet: another node sent it, too, and its check is on the way
            if IN_CACHE in error.message:
                asked[1].set_result(CheckResult(0, tx_hash))
            elif isinstance(error, Failed):
                asked[1].set_exception(_engines_refusal(error.message))
            else:
                asked[1].set_exception(error)

    def _is_known(self, tx_hash: bytes) -> bool:
        return tx_hash in self._waiting or self._ledger.store.tx_result(tx_hash) is not None

    def _connected(self) -> None:
        """CometBFT is up: give it what it may have forgotten, in the order in which it came."""
        if self._resending is not None:
            self._resending.cancel()
        self._resending = self._start(self._resend())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Each gives one known transaction or all of them, so their number is bounded with `_asked`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _resend(self) -> None:
        own = {tx_hash: data for tx_hash, data in self._waiting.items() if data}
        self._waiting = dict(own)
        for tx_hash, data in {**own, **{tx_hash: data for tx_hash, (data, _) in self._asked.items()}}.items():
            await self._give(tx_hash, data)

    # --- told by the ABCI requests ---

    def checked(self, data: bytes, result: CheckResult, *, again: bool) -> None:
        tx_hash = result.hash
        if result.code:
            if self._waiting.pop(tx_hash, None) and again:
                log.info("a transaction that waited was dropped: %s", result.message)
        elif not again:
            asked = self._asked.get(tx_hash)
            self._waiting[tx_hash] = data if asked else self._waiting.get(tx_hash, b"")
        asked = self._asked.get(tx_hash)
        if asked is not None and not asked[1].done():
            asked[1].set_result(result)

    def committed(self, hashes: list[bytes]) -> int:
        for tx_hash in hashes:
            self._waiting.pop(tx_hash, None)
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


def _refusal(result: CheckResult) -> TalkooError | None:
    return error_of(result.family, result.message, result.error_code) if result.code else None


def _known() -> TalkooError:
    return Conflict("the transaction is final already", code="already_final")


def _engines_refusal(words: str) -> TalkooError:
    """CometBFT's own reasons not to take a transaction."""
    if "mempool is full" in words:
        return Exhausted("too many transactions wait for a block; send it again in a moment", code="mempool_full")
    if "too large" in words.lower() or "too big" in words.lower():
        return Exhausted(f"the transaction is too large for CometBFT: {words}", code="tx_too_large")
    if "catching up" in words:
        return Unavailable("this node is still catching up; try again in a moment", code="catching_up")
    return InvalidInput(f"CometBFT refused the transaction: {words}", code="engine_refused")


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
