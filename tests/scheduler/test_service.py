"""Two scheduler processes with a real etcd over mutual TLS.

STAND-IN: one process decides the ledger's blocks (the production application, no consensus); tests/e2e has the real
nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from talkoo_ledger.records import TaskPhase
from talkoo_ledger.wire import event_proto, tx_result_proto
from talkoo_scheduler.settings import SchedulerSettings

from talkoo_core.errors import NotFound, TalkooError, error_of
from talkoo_runtime.etcd_server import etcd_arguments
from talkoo_runtime.grpc_client import error_from_rpc, open_channel
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.keys import save_key
from talkoo_runtime.pki import ensure_authority, ensure_certificate, identity_uri, trust_bundle
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_sim.ledger_chain import LedgerChain, address, key_of, make_genesis

PATIENCE_S = 40.0
GANG = {"north": "north-1", "east": "east-1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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

    async def Broadcast(self, request: Any, context: Any) -> service_pb2.BroadcastResponse:  # noqa: N802
        check = self.sim.application.check_tx(request.tx)
        if check.code:
            raise error_of(check.family, check.message, check.error_code)
        response = self.sim.block(request.tx)
        digest = hashlib.sha256(request.tx).digest()
        self.results[digest] = tx_result_proto(response.tx_results[0], self.sim.height, 0)
        return service_pb2.BroadcastResponse(hash=digest)

    async def WaitTx(self, request: Any, context: Any) -> service_pb2.TxResult:  # noqa: N802
        return self.results[request.hash]

    async def GetStatus(self, request: Any, context: Any) -> service_pb2.Status:  # noqa: N802
        return service_pb2.Status(chain_id=self.sim.genesis.chain_id, height=self.sim.height)

    async def Get(self, request: Any, context: Any) -> service_pb2.GetResponse:  # noqa: N802
        found = self.sim.application.query(request.module, request.key)
        if found.value is None:
            raise NotFound(f"there is no {request.key} in {request.module}")
        return service_pb2.GetResponse(value=found.value, height=found.height)

    async def List(self, request: Any, context: Any) -> service_pb2.ListResponse:  # noqa: N802
        found, more = self.sim.application.list(request.module, request.prefix, request.after, request.limit)
        entries = [service_pb2.Entry(key=key, value=value) for key, value in found]
        return service_pb2.ListResponse(entries=entries, height=self.sim.height, more=more)

    async def GetParams(self, request: Any, context: Any) -> state_pb2.Params:  # noqa: N802
        return state_pb2.Params.FromString(self.sim.application.query("params", "params").value or b"")

    async def Follow(self, request: Any, context: Any) -> AsyncIterator[service_pb2.BlockEvents]:  # noqa: N802
        sent = request.from_height
        while True:
            for block, answer in list(zip(self.sim.blocks, self.sim.responses, strict=True)):
                if block.height >= sent:
                    events = [event_proto(event) for event in answer.all_events()]
                    yield service_pb2.BlockEvents(height=block.height, events=events)
                    sent = block.height + 1
            await asyncio.sleep(0.05)


class Town:
    """Everything under one folder; processes may be killed by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chain = Chain()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.listen: dict[str, str] = {}
        self.ports = (free_port(), free_port())
        self.channels: list[grpc.aio.Channel] = []
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

    def start_etcd(self) -> None:
        at = self.who("north", "etcd", "etcd")
        paths = (Path(at["certificate"]), Path(at["private_key"]), Path(at["trust_bundle"]))
        self.spawn("etcd", etcd_arguments(self.folder / "etcd-data", *self.ports, *paths))

    def start_scheduler(self, organization: str) -> None:
        name = f"{organization}-scheduler"
        key = self.folder / f"{name}.key"
        if not key.exists():
            save_key(key, key_of(name), hashlib.sha256(f"sim key {name}".encode()).digest())
        settings = SchedulerSettings(
            **self.who(organization, "scheduler", name),
            ledger=self.listen[f"{organization}-ledger"],
            etcd=(f"127.0.0.1:{self.ports[0]}",),
            account_key=str(key),
            offer_ttl_s=2,
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
        return scheduler_pb2_grpc.SchedulerStub(self.channels[-1])

    async def offer(self, organization: str) -> None:
        """The heart-beat of one agent, through whatever trouble the schedulers have."""
        name = GANG[organization]
        stub = self.stub(organization, "agent", name)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):  # killed on purpose here; the next beat tries again
                await stub.Offer(scheduler_pb2.OfferRequest(offer=offer_of(organization)), timeout=5)
            await asyncio.sleep(0.4)


def offer_of(organization: str) -> scheduler_pb2.Offer:
    name = GANG[organization]
    return scheduler_pb2.Offer(
        node_id=address(name),
        name=name,
        organization=organization,
        free_memory_bytes=2**33,
        speed_flops=10**9,
        state="ready",
        slots=8,
    )


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    town = Town(tmp_path)
    town.chain.sim.register(*GANG.values())
    servers = []
    try:
        town.start_etcd()
        for organization in GANG:
            settings = ServiceSettings(**town.who(organization, "ledger", f"{organization}-ledger"))
            server = make_server()
            service_pb2_grpc.add_LedgerServicer_to_server(town.chain, server)
            await start_server(server, settings)
            servers.append(server)
            town.start_scheduler(organization)
        yield town
    finally:
        for channel in town.channels:
            await channel.close()
        for name in list(town.running):
            town.kill(name)
        for server in servers:
            await server.stop(0)


async def offers(stub: Any) -> scheduler_pb2.ListOffersResponse:
    try:
        return await stub.ListOffers(scheduler_pb2.ListOffersRequest(), timeout=5)
    except grpc.aio.AioRpcError:
        return scheduler_pb2.ListOffersResponse()


async def refused(call: Awaitable[Any]) -> TalkooError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_rpc(caught.value)


async def test_offers_placements_and_a_killed_leader(town: Town) -> None:
    readers = {name: town.stub(name, "supervisor", f"{name}-supervisor") for name in GANG}

    async def leads() -> bool:
        return bool((await offers(readers["north"])).leader) and bool((await offers(readers["east"])).leader)

    await until(leads, "a leader")
    sim = town.chain.sim
    first = sim.create()

    async def waits() -> bool:
        asked = scheduler_pb2.ExplainRequest(task_id=first)
        return "0 fit" in (await readers["east"].Explain(asked, timeout=5)).summary

    await until(waits, "a reason to wait")
    stranger = town.stub("north", "agent", "north-9")
    wrong = scheduler_pb2.OfferRequest(offer=offer_of("north"))
    assert (await refused(stranger.Offer(wrong, timeout=5))).code == "wrong_node"
    foreign = town.stub("east", "agent", "east-9", "north")
    await refused(foreign.Offer(wrong, timeout=5))

    beats = {name: asyncio.create_task(town.offer(name)) for name in GANG}
    try:

        async def placed(task_id: str) -> bool:
            return sim.task(task_id).phase is TaskPhase.RUNNING

        await until(lambda: placed(first), "the placement")
        assert sim.task(first).attempt == 1
        withdrawal = scheduler_pb2.WithdrawRequest(node_id=address("north-1"))
        assert (await refused(stranger.Withdraw(withdrawal, timeout=5))).code == "wrong_node"

        leader = (await offers(readers["east"])).leader
        town.kill(f"{leader}-scheduler")
        other = next(name for name in GANG if name != leader)

        async def another_leads() -> bool:
            return (await offers(readers[other])).leader == other

        await until(another_leads, "the other leader")
        town.start_scheduler(leader)
        second = sim.create()
        await until(lambda: placed(second), "a placement by the next leader")

        town.kill("etcd")
        third = sim.create()
        town.start_etcd()
        await until(lambda: placed(third), "a placement after etcd came back")
        assert sim.task(third).attempt == 1
    finally:
        for beat in beats.values():
            beat.cancel()
        await asyncio.gather(*beats.values(), return_exceptions=True)

    async def gone() -> bool:
        seen = await offers(readers[other])
        return bool(seen.leader) and not seen.offers

    await until(gone, "offers without a heart-beat to run out")
