"""A town for agents under test: certificates, a ledger and a scheduler that stand in for the real ones, and blobs."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from talkoo_agent.service import serve
from talkoo_agent.settings import AgentSettings
from talkoo_api.agent.v1 import agent_pb2_grpc
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from talkoo_ledger.wire import event_proto, tx_result_proto

from talkoo_core.errors import NotFound, error_of
from talkoo_runtime.blobs import open_blob_store
from talkoo_runtime.grpc_client import open_channel
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.keys import save_key
from talkoo_runtime.pki import ensure_authority, ensure_certificate, identity_uri, trust_bundle
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_runtime.supervision import Background
from talkoo_sim.ledger_chain import LedgerChain, make_genesis
from talkoo_sim.ports import free_port


class Chain(service_pb2_grpc.LedgerServicer):
    """STAND-IN for a ledger node: every transaction is decided at once, in a block of its own."""

    def __init__(self) -> None:
        self.sim = LedgerChain(make_genesis(emission_per_epoch_utlk=0))
        self.results: dict[bytes, service_pb2.TxResult] = {}
        self.blocks: list[service_pb2.BlockEvents] = []
        self.changed = asyncio.Event()

    def decide(self, *txs: bytes) -> None:
        """One block, and those that the ledger asks for at once."""
        while True:
            response = self.sim.block(*txs)
            for index, (tx, result) in enumerate(zip(txs, response.tx_results, strict=True)):
                self.results[hashlib.sha256(tx).digest()] = tx_result_proto(result, self.sim.height, index)
            events = [event_proto(event) for event in response.all_events()]
            self.blocks.append(service_pb2.BlockEvents(height=self.sim.height, events=events))
            if not response.more_work:
                break
            txs = ()
        self.changed.set()
        self.changed = asyncio.Event()

    def send(self, name: str, message: Any) -> service_pb2.TxResult:
        tx = self.sim.signed(name, message)
        self.decide(tx)
        result = self.results[hashlib.sha256(tx).digest()]
        assert result.code == 0, result
        return result

    async def Broadcast(self, request: service_pb2.BroadcastRequest, context: Any) -> service_pb2.BroadcastResponse:
        check = self.sim.application.check_tx(request.tx)
        if check.code:
            raise error_of(check.family, check.message, check.error_code)
        self.decide(request.tx)
        return service_pb2.BroadcastResponse(hash=hashlib.sha256(request.tx).digest())

    async def WaitTx(self, request: service_pb2.WaitTxRequest, context: Any) -> service_pb2.TxResult:
        return self.results[request.hash]

    async def GetStatus(self, request: service_pb2.GetStatusRequest, context: Any) -> service_pb2.Status:
        return service_pb2.Status(chain_id=self.sim.genesis.chain_id, height=self.sim.height)

    async def Get(self, request: service_pb2.GetRequest, context: Any) -> service_pb2.GetResponse:
        found = self.sim.application.query(request.module, request.key)
        if found.value is None:
            raise NotFound(f"there is no {request.key} in {request.module}")
        return service_pb2.GetResponse(value=found.value, height=found.height)

    async def List(self, request: service_pb2.ListRequest, context: Any) -> service_pb2.ListResponse:
        found, more = self.sim.application.list(request.module, request.prefix, request.after, request.limit)
        entries = [service_pb2.Entry(key=key, value=value) for key, value in found]
        return service_pb2.ListResponse(entries=entries, height=self.sim.height, more=more)

    async def GetParams(self, request: service_pb2.GetParamsRequest, context: Any) -> state_pb2.Params:
        return state_pb2.Params.FromString(self.sim.application.query("params", "params").value or b"")

    async def Follow(self, request: service_pb2.FollowRequest, context: Any) -> AsyncIterator[service_pb2.BlockEvents]:
        sent = request.from_height
        while True:
            changed = self.changed
            for block in [block for block in self.blocks if block.height >= sent]:
                yield block
                sent = block.height + 1
            await changed.wait()


class Listener(scheduler_pb2_grpc.SchedulerServicer):
    """STAND-IN for a scheduler: remembers the last offer of each node and all reports."""

    def __init__(self) -> None:
        self.offers: dict[str, scheduler_pb2.Offer] = {}
        self.reports: list[scheduler_pb2.ReportShardRequest] = []

    async def Offer(self, request: scheduler_pb2.OfferRequest, context: Any) -> scheduler_pb2.OfferResponse:
        self.offers[request.offer.name] = request.offer
        return scheduler_pb2.OfferResponse(ttl_s=2)

    async def Withdraw(self, request: scheduler_pb2.WithdrawRequest, context: Any) -> scheduler_pb2.WithdrawResponse:
        self.offers = {name: offer for name, offer in self.offers.items() if offer.node_id != request.node_id}
        return scheduler_pb2.WithdrawResponse()

    async def ReportShard(
        self, request: scheduler_pb2.ReportShardRequest, context: Any
    ) -> scheduler_pb2.ReportShardResponse:
        self.reports.append(request)
        return scheduler_pb2.ReportShardResponse()


class Town:
    """Certificates, a ledger, a scheduler, blobs and agents under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chain, self.listener = Chain(), Listener()
        self.blobs = open_blob_store((folder / "blobs").as_uri())
        authorities = [ensure_authority(folder / name, name) for name in ("north", "east")]
        (folder / "trust.pem").write_bytes(trust_bundle(authorities))
        self._stops: list[Callable[[], Any]] = []
        self.endpoints: dict[str, str] = {}

    def who(self, organization: str, role: str, name: str) -> dict[str, Any]:
        at = self.folder / "members" / name
        uri = identity_uri("talkoo-test", organization, role, name)
        ensure_certificate(ensure_authority(self.folder / organization, organization), at, uri)
        return {
            "federation": "talkoo-test",
            "organization": organization,
            "name": name,
            "listen": f"127.0.0.1:{free_port()}",
            "state_dir": str(at / "state"),
            "certificate": str(at / "certificate.pem"),
            "private_key": str(at / "private-key.pem"),
            "trust_bundle": str(self.folder / "trust.pem"),
        }

    async def open(self) -> None:
        for role, add, servicer in (
            ("ledger", service_pb2_grpc.add_LedgerServicer_to_server, self.chain),
            ("scheduler", scheduler_pb2_grpc.add_SchedulerServicer_to_server, self.listener),
        ):
            settings = ServiceSettings(**self.who("north", role, role))
            server = make_server()
            add(servicer, server)  # type: ignore[no-untyped-call]  # generated
            await start_server(server, settings)
            self.endpoints[role] = settings.listen
            self._stops.append(functools.partial(server.stop, 0))

    def settings(self, name: str, **changes: Any) -> AgentSettings:
        fields = self.who(name.split("-")[0], "agent", name)
        key_path = self.folder / "members" / name / "account.key"
        if not key_path.exists():
            save_key(key_path, hashlib.sha256(f"sim key {name}".encode()).digest())
        made = AgentSettings(
            **fields,
            ledger=self.endpoints["ledger"],
            scheduler=self.endpoints["scheduler"],
            blobs=(self.folder / "blobs").as_uri(),
            account_key=str(key_path),
            price_utlk_per_gflop=100_000,
            request_price_utlk=50_000,
            stake_utlk=20_000_000,
            **changes,
        )
        Path(made.state_dir).mkdir(parents=True, exist_ok=True)
        self.endpoints[name] = made.listen
        return made

    async def agent(self, name: str, **changes: Any) -> None:
        settings = self.settings(name, **changes)
        background = Background()
        stop = await serve(settings, background)

        async def both() -> None:
            await stop()
            await background.stop()

        self._stops.insert(0, both)

    async def close(self) -> None:
        for stop in self._stops:
            await stop()

    def stub(self, name: str, role: str) -> Any:
        """An agent's stub as a caller of this role sees it."""
        at = self.who("north", role, f"{role}-caller")
        channel = open_channel(
            self.endpoints[name], Path(at["certificate"]), Path(at["private_key"]), Path(at["trust_bundle"])
        )
        self._stops.insert(0, channel.close)
        return agent_pb2_grpc.AgentStub(channel)  # type: ignore[no-untyped-call]  # generated
