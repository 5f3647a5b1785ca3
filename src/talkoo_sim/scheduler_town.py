"""Scheduler processes with real etcds over mutual TLS, in one cluster or in several.

STAND-IN: one process decides the ledger's blocks (the production application, no consensus).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import msgspec
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from talkoo_ledger.wire import event_proto, tx_result_proto
from talkoo_scheduler.settings import SchedulerSettings

from talkoo_core.errors import NotFound, error_of
from talkoo_runtime.etcd_server import etcd_arguments
from talkoo_runtime.grpc_client import open_channel
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.keys import save_key
from talkoo_runtime.pki import ensure_authority, ensure_certificate, identity_uri, trust_bundle
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_sim.ledger_chain import LedgerChain, address, make_genesis
from talkoo_sim.ports import free_port

PATIENCE_S = 40.0
GANG = {"north": "north-1", "east": "east-1"}
ONE_ETCD = dict.fromkeys(GANG, "etcd")


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.1)


class Chain(service_pb2_grpc.LedgerServicer):
    """STAND-IN for a ledger node: every transaction is decided at once, in a block of its own."""

    def __init__(self) -> None:
        self.sim = LedgerChain(make_genesis(emission_per_epoch_utlk=0))
        self.results: dict[bytes, service_pb2.TxResult] = {}
        self.broadcasts = 0
        self.gate: asyncio.Barrier | None = None
        """Where a test lets transactions of several senders come at one moment."""
        self.refused: list[str] = []
        """Codes of transactions that failed."""

    async def Broadcast(self, request: Any, _context: Any) -> service_pb2.BroadcastResponse:  # noqa: N802
        self.broadcasts += 1
        if self.gate is not None:
            await self.gate.wait()
        check = self.sim.application.check_tx(request.tx)
        if check.code:
            self.refused.append(check.error_code)
            raise error_of(check.family, check.message, check.error_code)
        response = self.sim.block(request.tx)
        self.refused += [result.error_code for result in response.tx_results if result.code]
        digest = hashlib.sha256(request.tx).digest()
        self.results[digest] = tx_result_proto(response.tx_results[0], self.sim.height, 0)
        return service_pb2.BroadcastResponse(hash=digest)

    async def WaitTx(self, request: Any, _context: Any) -> service_pb2.TxResult:  # noqa: N802
        return self.results[request.hash]

    async def GetStatus(self, _request: Any, _context: Any) -> service_pb2.Status:  # noqa: N802
        return service_pb2.Status(chain_id=self.sim.genesis.chain_id, height=self.sim.height)

    async def Get(self, request: Any, _context: Any) -> service_pb2.GetResponse:  # noqa: N802
        found = self.sim.application.query(request.module, request.key)
        if found.value is None:
            raise NotFound(f"there is no {request.key} in {request.module}")
        return service_pb2.GetResponse(value=found.value, height=found.height)

    async def List(self, request: Any, _context: Any) -> service_pb2.ListResponse:  # noqa: N802
        found, more = self.sim.application.list(request.module, request.prefix, request.after, request.limit)
        entries = [service_pb2.Entry(key=key, value=value) for key, value in found]
        return service_pb2.ListResponse(entries=entries, height=self.sim.height, more=more)

    async def GetParams(self, _request: Any, _context: Any) -> state_pb2.Params:  # noqa: N802
        return state_pb2.Params.FromString(self.sim.application.query("params", "params").value or b"")

    async def Follow(self, request: Any, _context: Any) -> AsyncIterator[service_pb2.BlockEvents]:  # noqa: N802
        sent = request.from_height
        while True:
            for block, answer in list(zip(self.sim.blocks, self.sim.responses, strict=True)):
                if block.height >= sent:
                    events = [event_proto(event) for event in answer.all_events()]
                    yield service_pb2.BlockEvents(height=block.height, events=events)
                    sent = block.height + 1
            await asyncio.sleep(0.05)


class Town:
    """Everything under one folder; processes may be killed by name. `etcds`: which etcd an organization has."""

    def __init__(self, folder: Path, etcds: Mapping[str, str] = ONE_ETCD) -> None:
        self.folder = folder
        self.chain = Chain()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.listen: dict[str, str] = {}
        self.etcds = etcds
        self.ports = {etcd: (free_port(), free_port()) for etcd in sorted(set(etcds.values()))}
        self.channels: list[grpc.aio.Channel] = []
        self.ledgers: dict[str, grpc.aio.Server] = {}
        authorities = [ensure_authority(folder / name, name) for name in GANG]
        (folder / "trust.pem").write_bytes(trust_bundle(authorities))

    def who(self, organization: str, role: str, name: str) -> dict[str, Any]:
        at = self.folder / "members" / name
        authority = ensure_authority(self.folder / organization, organization)
        ensure_certificate(authority, at, identity_uri("town", organization, role, name))
        self.listen.setdefault(name, f"127.0.0.1:{free_port()}")
        return {
            "federation": "town",
            "organization": organization,
            "name": name,
            "listen": self.listen[name],
            "state_dir": str(at / "state"),
            "certificate": str(at / "certificate.pem"),
            "private_key": str(at / "private-key.pem"),
            "trust_bundle": str(self.folder / "trust.pem"),
        }

    def spawn(self, name: str, arguments: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def start_etcd(self, name: str = "etcd") -> None:
        at = self.who("north", "etcd", name)
        paths = (Path(at["certificate"]), Path(at["private_key"]), Path(at["trust_bundle"]))
        self.spawn(name, etcd_arguments(self.folder / f"{name}-data", *self.ports[name], *paths))

    def start_scheduler(self, organization: str, share_with: Sequence[str] = ()) -> None:
        """`share_with`: organizations."""
        name = f"{organization}-scheduler"
        key = self.folder / f"{name}.key"
        if not key.exists():
            save_key(key, hashlib.sha256(f"sim key {name}".encode()).digest())
        settings = SchedulerSettings(
            **self.who(organization, "scheduler", name),
            ledger=self.listen[f"{organization}-ledger"],
            etcd=(f"127.0.0.1:{self.ports[self.etcds[organization]][0]}",),
            account_key=str(key),
            offer_ttl_s=2,
            share_with=tuple(self.listen[f"{each}-scheduler"] for each in share_with),
        )
        path = self.folder / f"{name}.toml"
        fields = msgspec.to_builtins(settings)
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items()))
        self.spawn(name, [sys.executable, "-m", "talkoo_scheduler", "--settings", str(path)])

    def stub(self, organization: str, role: str, name: str, at_organization: str = "") -> Any:
        at = self.who(organization, role, name)
        target = self.listen[f"{at_organization or organization}-scheduler"]
        paths = (Path(at["certificate"]), Path(at["private_key"]), Path(at["trust_bundle"]))
        self.channels.append(open_channel(target, *paths))
        return scheduler_pb2_grpc.SchedulerStub(self.channels[-1])  # type: ignore[no-untyped-call]  # generated

    async def start_ledger(self, organization: str) -> None:
        settings = ServiceSettings(**self.who(organization, "ledger", f"{organization}-ledger"))
        server = make_server()
        service_pb2_grpc.add_LedgerServicer_to_server(self.chain, server)  # type: ignore[no-untyped-call]  # generated
        await start_server(server, settings)
        self.ledgers[organization] = server

    async def stop(self) -> None:
        for channel in self.channels:
            await channel.close()
        for name in list(self.running):
            self.kill(name)
        for server in self.ledgers.values():
            await server.stop(0)

    async def offer(self, organization: str, slots: int = 8, **changes: Any) -> None:
        """The heart-beat of one agent, through whatever trouble the schedulers have."""
        name = GANG[organization]
        stub = self.stub(organization, "agent", name)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):  # killed on purpose here; the next beat tries again
                await stub.Offer(scheduler_pb2.OfferRequest(offer=offer_of(organization, slots, **changes)), timeout=5)
            await asyncio.sleep(0.4)


def offer_of(organization: str, slots: int = 8, **changes: Any) -> scheduler_pb2.Offer:
    values: dict[str, Any] = {
        "node_id": address(GANG[organization]),
        "name": GANG[organization],
        "organization": organization,
        "free_memory_bytes": 2**33,
        "speed_flops": 10**9,
        "state": "ready",
        "slots": slots,
    }
    return scheduler_pb2.Offer(**(values | changes))


@contextlib.asynccontextmanager
async def beating(
    town: Town, slots: int, outbound_only: Sequence[str] = ()
) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """All agents offer, by organization; cancel one and its node has died. `outbound_only`: organizations."""
    beats = {name: asyncio.create_task(town.offer(name, slots, outbound_only=name in outbound_only)) for name in GANG}
    try:
        yield beats
    finally:
        for beat in beats.values():
            beat.cancel()
        await asyncio.gather(*beats.values(), return_exceptions=True)


async def offers(stub: Any) -> scheduler_pb2.ListOffersResponse:
    """Nothing while a scheduler is not there to ask."""
    try:
        found: scheduler_pb2.ListOffersResponse = await stub.ListOffers(scheduler_pb2.ListOffersRequest(), timeout=5)
    except grpc.aio.AioRpcError:
        return scheduler_pb2.ListOffersResponse()
    return found


async def told(stub: Any, task_id: str) -> str:
    """What Explain says; nothing while a scheduler is not there to ask."""
    try:
        return str((await stub.Explain(scheduler_pb2.ExplainRequest(task_id=task_id), timeout=5)).summary)
    except grpc.aio.AioRpcError:
        return ""
