"""The ledger node's gRPC services, and how its parts are put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from grpc.aio import Server
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, state_pb2

from talkoo_core.errors import Conflict, Exhausted, InvalidInput, NotFound, Unavailable
from talkoo_core.signing import PrivateKey
from talkoo_ledger.comet.home import has_begun, home_of
from talkoo_ledger.embedded import EmbeddedEngine
from talkoo_ledger.engine import Engine
from talkoo_ledger.executor import Executor
from talkoo_ledger.genesis import Genesis, check_genesis, parse_genesis
from talkoo_ledger.mempool import Mempool
from talkoo_ledger.metrics import count_refused, watch_engine, watch_mempool
from talkoo_ledger.node import Node
from talkoo_ledger.settings import COMETBFT, LedgerSettings
from talkoo_ledger.sign_state import Signer
from talkoo_ledger.wal import WriteAheadLog
from talkoo_ledger.wire import state_proof_proto
from talkoo_runtime.clock import SystemClock
from talkoo_runtime.disk import FolderDisk
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.identity import identity_of, identity_of_certificate, require
from talkoo_runtime.keys import load_key
from talkoo_runtime.supervision import Background
from talkoo_runtime.transactions import transaction_hash

log = logging.getLogger(__name__)

MAX_WAIT_MS = 60_000
BLOCKS_AT_ONCE = 10_000
BROADCAST_MANY_TXS = 1_000
BROADCAST_MANY_BYTES = 1 << 20
OWN_ROLES = {"scheduler", "validator", "gateway", "agent", "supervisor"}
STOP_GRACE_S = 1.0


class LedgerServicer(service_pb2_grpc.LedgerServicer):
    """For the services of the own organization."""

    def __init__(self, engine: Engine, settings: LedgerSettings) -> None:
        self._engine = engine
        self._settings = settings

    @property
    def _executor(self) -> Executor:
        return self._engine.executor

    def _admit(self, context: Any) -> None:
        require(identity_of(context), roles=OWN_ROLES, organization=self._settings.organization)

    async def Broadcast(self, request: Any, context: Any) -> service_pb2.BroadcastResponse:
        self._admit(context)
        (refused,) = await self._engine.submit((request.tx,))
        count_refused((refused,))
        if refused is not None:
            raise refused
        return service_pb2.BroadcastResponse(hash=transaction_hash(request.tx))

    async def BroadcastMany(self, request: Any, context: Any) -> service_pb2.BroadcastManyResponse:
        self._admit(context)
        if len(request.txs) > BROADCAST_MANY_TXS or request.ByteSize() > BROADCAST_MANY_BYTES:
            raise Exhausted(
                f"{len(request.txs)} transactions in {request.ByteSize()} bytes at once; send at most "
                f"{BROADCAST_MANY_TXS} in {BROADCAST_MANY_BYTES} bytes",
                code="too_many_txs",
            )
        response = service_pb2.BroadcastManyResponse()
        outcomes = await self._engine.submit(request.txs)
        count_refused(outcomes)
        for index, error in enumerate(outcomes):
            if error is not None:
                response.refused.add(index=index, family=error.family, code=error.code, message=error.message)
        return response

    async def WaitTx(self, request: Any, context: Any) -> service_pb2.TxResult:
        self._admit(context)
        now = asyncio.get_running_loop().time
        deadline = now() + min(request.timeout_ms, MAX_WAIT_MS) / 1000
        while True:
            result = self._executor.store.tx_result(request.hash)
            if result is not None:
                return result
            left = deadline - now()
            try:
                await asyncio.wait_for(self._executor.decided(), max(left, 0.0))
            except TimeoutError:
                where = "waits for a block" if self._engine.waits(request.hash) else "is not known here"
                raise Unavailable(f"the transaction {where}", code="not_final_yet") from None

    async def GetStatus(self, request: Any, context: Any) -> service_pb2.Status:
        self._admit(context)
        chain, engine = self._executor.chain, self._engine
        return service_pb2.Status(
            chain_id=chain.chain_id,
            organization=self._settings.organization,
            height=chain.last_height,
            block_hash=chain.last_block_id.hash,
            app_hash=chain.app_hash,
            time_ns=chain.last_time_ns,
            catching_up=engine.catching_up,
            peers=engine.connected(),
            mempool_txs=engine.waiting(),
            round=engine.round,
        )

    async def Get(self, request: Any, context: Any) -> service_pb2.GetResponse:
        self._admit(context)
        found = self._executor.application.query(request.module, request.key, prove=request.prove)
        if found.value is None and not request.prove:
            raise NotFound(f"there is no {request.key!r} among the ledger's {request.module}")
        response = service_pb2.GetResponse(value=found.value or b"", height=found.height)
        if request.prove:
            response.proof.CopyFrom(state_proof_proto(request.key, found))
        return response

    async def List(self, request: Any, context: Any) -> service_pb2.ListResponse:
        self._admit(context)
        entries, more = self._executor.application.list(
            request.module, request.prefix, request.after, request.limit, request.reverse
        )
        return service_pb2.ListResponse(
            entries=[service_pb2.Entry(key=key, value=value) for key, value in entries],
            height=self._executor.chain.last_height,
            more=more,
        )

    async def GetSupply(self, request: Any, context: Any) -> state_pb2.Supply:
        self._admit(context)
        value = self._executor.application.query("supply", "supply").value
        assert value is not None
        return state_pb2.Supply.FromString(value)

    async def GetParams(self, request: Any, context: Any) -> state_pb2.Params:
        self._admit(context)
        value = self._executor.application.query("params", "params").value
        assert value is not None
        return state_pb2.Params.FromString(value)

    async def GetGenesis(self, request: Any, context: Any) -> service_pb2.Genesis:
        self._admit(context)
        return service_pb2.Genesis(json=self._executor.genesis.canonical_json().decode())

    async def Blocks(self, request: Any, context: Any) -> AsyncIterator[service_pb2.RawBlock]:
        self._admit(context)
        async for raw in _blocks(self._engine, request, results=not request.without_results):
            yield raw

    async def Follow(self, request: Any, context: Any) -> AsyncIterator[service_pb2.BlockEvents]:
        """Reads from the store at the reader's own pace, so a slow reader costs nothing and misses nothing."""
        self._admit(context)
        height = request.from_height or self._executor.chain.last_height + 1
        while True:
            while height <= self._executor.chain.last_height:
                events = self._executor.store.events(height)
                if events is None:
                    raise NotFound(f"block {height} is not on this node", code="no_block")
                yield events
                height += 1
            await self._executor.decided()


class ConsensusServicer(service_pb2_grpc.ConsensusServicer):
    """For the ledger nodes of the other member organizations."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def _admit(self, context: Any) -> str:
        identity = identity_of(context)
        require(identity, roles={"ledger"})
        members = self._node.peers.members()
        if identity.organization not in members:
            require(identity, roles={"ledger"}, organization=" or ".join(sorted(members)))
        return identity.organization

    async def Exchange(
        self, request_iterator: AsyncIterator[service_pb2.PeerMessage], context: Any
    ) -> AsyncIterator[service_pb2.PeerMessage]:
        """A hello of each side, then both speak (`Mesh.serve`)."""
        organization = self._admit(context)
        async for message in self._node.mesh.serve(organization, request_iterator):
            yield message


async def _blocks(engine: Engine, request: Any, *, results: bool) -> AsyncIterator[service_pb2.RawBlock]:
    executor = engine.executor
    first = max(request.from_height, 1)
    last = min(request.to_height or executor.chain.last_height, executor.chain.last_height, first + BLOCKS_AT_ONCE - 1)
    for height in range(first, last + 1):
        stored = await engine.stored_block(height)
        yield service_pb2.RawBlock(
            height=height,
            block=stored.block,
            commit=stored.commit,
            results=stored.results if results else (),
        )


async def serve(settings: LedgerSettings, background: Background) -> Callable[[], Awaitable[None]]:
    """Open the ledger under the engine that the settings name, and serve it."""
    genesis = parse_genesis(_read(Path(settings.genesis)))
    check_genesis(genesis)
    _check_names(settings, genesis)
    key = load_key(Path(settings.consensus_key))
    server = make_server()
    if settings.engine == COMETBFT:
        if settings.rpc_listen:
            raise InvalidInput(
                "rpc_listen is of our own engine; CometBFT serves its RPC itself: set comet.rpc_listen",
                code="bad_settings",
            )
        from talkoo_ledger.comet.engine import open_comet  # its websocket client costs memory that others can spare

        opened = await open_comet(settings, genesis, key, SystemClock(), background)
        engine: Engine = opened
        stop_engine: Callable[[], Awaitable[None]] = opened.stop
    else:
        engine, stop_engine = _open_embedded(settings, genesis, key, server, background)
    service_pb2_grpc.add_LedgerServicer_to_server(LedgerServicer(engine, settings), server)  # type: ignore[no-untyped-call]
    watch_engine(engine, engine.executor.store.path)
    await start_server(server, settings)

    async def stop() -> None:
        await server.stop(STOP_GRACE_S)
        await stop_engine()

    return stop


def _open_embedded(
    settings: LedgerSettings, genesis: Genesis, key: PrivateKey, server: Server, background: Background
) -> tuple[Engine, Callable[[], Awaitable[None]]]:
    """Our own engine: it speaks with other members over this gRPC server."""
    if has_begun(settings):
        raise Conflict(
            f"this ledger's blocks are CometBFT's (see {home_of(settings)}), and our own engine cannot go on from "
            'them; set engine = "cometbft"',
            code="other_engine",
        )
    folder, clock = Path(settings.state_dir), SystemClock()
    executor = Executor(genesis, folder, clock, settings.retain_blocks, index_events=bool(settings.rpc_listen))
    node = Node(
        settings,
        executor,
        Signer(key, genesis.chain_id, FolderDisk(folder)),
        key.public.address,
        WriteAheadLog(FolderDisk(folder / "wal")),
        Mempool(executor.application),
        clock,
    )
    service_pb2_grpc.add_ConsensusServicer_to_server(ConsensusServicer(node), server)  # type: ignore[no-untyped-call]
    background.start("consensus", node.run())
    background.start("round steps", node.tick())
    background.start("mesh", node.mesh.run())
    background.start("block sync", node.sync.run())
    engine = EmbeddedEngine(node)
    watch_mempool(node.mempool)
    stop_rpc: Callable[[], Awaitable[None]] | None = None
    if settings.rpc_listen:
        from talkoo_ledger.rpc.service import serve_rpc  # its HTTP server costs memory that most nodes can spare

        stop_rpc = serve_rpc(settings, node, engine, key.public, background)

    async def stop() -> None:
        if stop_rpc is not None:
            await stop_rpc()
        executor.store.close()

    return engine, stop


def _check_names(settings: LedgerSettings, genesis: Genesis) -> None:
    """Raises InvalidInput (code `wrong_identity`). Who the genesis does not name may have been admitted since."""
    shown = identity_of_certificate(_read(Path(settings.certificate))).organization
    if shown != settings.organization:
        raise InvalidInput(
            f"the certificate {settings.certificate} is one of {shown}, the settings are those of "
            f"{settings.organization!r}; correct `organization` or `certificate`",
            code="wrong_identity",
        )
    members = {organization.name for organization in genesis.organizations}
    for name in (settings.organization, *(peer.organization for peer in settings.peers)):
        if name not in members:
            log.warning(
                "%r is no member in the genesis file %s (%s); it is heard once the chain has admitted it",
                name,
                settings.genesis,
                ", ".join(sorted(members)),
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}; the settings name it, the federation has it") from None
