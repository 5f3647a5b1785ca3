"""Two scheduler processes with a real etcd over mutual TLS.

STAND-IN: one process decides the ledger's blocks (the production application, no consensus); tests/e2e has the real
nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, state_pb2, tx_pb2
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
from talkoo_sim.ledger_chain import LedgerChain, address, make_genesis
from talkoo_sim.ports import free_port

PATIENCE_S = 40.0
GANG = {"north": "north-1", "east": "east-1"}


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

    async def Broadcast(self, request: Any, context: Any) -> service_pb2.BroadcastResponse:  # noqa: N802
        self.broadcasts += 1
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

    def start_etcd(self) -> None:
        at = self.who("north", "etcd", "etcd")
        paths = (Path(at["certificate"]), Path(at["private_key"]), Path(at["trust_bundle"]))
        self.spawn("etcd", etcd_arguments(self.folder / "etcd-data", *self.ports, *paths))

    def start_scheduler(self, organization: str) -> None:
        name = f"{organization}-scheduler"
        key = self.folder / f"{name}.key"
        if not key.exists():
            save_key(key, hashlib.sha256(f"sim key {name}".encode()).digest())
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

    async def offer(self, organization: str, slots: int = 8) -> None:
        """The heart-beat of one agent, through whatever trouble the schedulers have."""
        name = GANG[organization]
        stub = self.stub(organization, "agent", name)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):  # killed on purpose here; the next beat tries again
                await stub.Offer(scheduler_pb2.OfferRequest(offer=offer_of(organization, slots)), timeout=5)
            await asyncio.sleep(0.4)


def offer_of(organization: str, slots: int = 8) -> scheduler_pb2.Offer:
    name = GANG[organization]
    return scheduler_pb2.Offer(
        node_id=address(name),
        name=name,
        organization=organization,
        free_memory_bytes=2**33,
        speed_flops=10**9,
        state="ready",
        slots=slots,
    )


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    town = Town(tmp_path)
    town.chain.sim.register(*GANG.values())
    try:
        town.start_etcd()
        for organization in GANG:
            settings = ServiceSettings(**town.who(organization, "ledger", f"{organization}-ledger"))
            server = make_server()
            service_pb2_grpc.add_LedgerServicer_to_server(town.chain, server)
            await start_server(server, settings)
            town.ledgers[organization] = server
            town.start_scheduler(organization)
        yield town
    finally:
        for channel in town.channels:
            await channel.close()
        for name in list(town.running):
            town.kill(name)
        for server in town.ledgers.values():
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


@contextlib.asynccontextmanager
async def beating(town: Town, slots: int) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """Both agents offer, by organization; cancel one and its node has died."""
    beats = {name: asyncio.create_task(town.offer(name, slots)) for name in GANG}
    try:
        yield beats
    finally:
        for beat in beats.values():
            beat.cancel()
        await asyncio.gather(*beats.values(), return_exceptions=True)


async def told(stub: Any, task_id: str) -> str:
    """What Explain says; nothing while a scheduler is not there to ask."""
    try:
        return str((await stub.Explain(scheduler_pb2.ExplainRequest(task_id=task_id), timeout=5)).summary)
    except grpc.aio.AioRpcError:
        return ""


async def test_a_slot_is_given_once_although_its_offer_never_says_that_it_is_taken(town: Town) -> None:
    sim, reader = town.chain.sim, town.stub("north", "supervisor", "north-supervisor")
    async with beating(town, slots=1):
        first, second = sim.create(name="first"), sim.create(name="second", model_name="other")

        async def one_runs_and_one_waits() -> bool:
            tasks = [sim.task(first), sim.task(second)]
            running = [task for task in tasks if task.phase is TaskPhase.RUNNING]
            waiting = next((task for task in tasks if task.phase is TaskPhase.PENDING), None)
            assert len(running) < 2, "a slot was given twice"
            if not running or waiting is None:
                return False
            return f"is busy (runs {running[0].spec.name})" in await told(reader, waiting.id)

        await until(one_runs_and_one_waits, "one task to wait for the other's slot")
        runs, waits = (first, second) if sim.task(first).phase is TaskPhase.RUNNING else (second, first)
        sim.send("alice", tx_pb2.CancelTask(task_id=runs))

        async def placed() -> bool:
            return sim.task(waits).phase is TaskPhase.RUNNING

        await until(placed, "the slot to be given to the task that waited")


async def test_a_dead_node_s_task_stands_still_and_is_then_placed_on_another(town: Town) -> None:
    sim, reader = town.chain.sim, town.stub("north", "supervisor", "north-supervisor")
    async with beating(town, slots=1) as beats:

        async def both_offer() -> bool:
            return len((await offers(reader)).offers) == len(GANG)

        await until(both_offer, "both offers")
        task_id = sim.create(min_nodes=1, max_nodes=1)

        async def placed(attempt: int) -> bool:
            return sim.task(task_id).attempt == attempt

        await until(lambda: placed(1), "the first placement")
        dead = next(o for o, name in GANG.items() if address(name) == sim.task(task_id).shards[0].node_id)
        beats[dead].cancel()

        async def one_offer() -> bool:
            return [offer.organization for offer in (await offers(reader)).offers] == [o for o in GANG if o != dead]

        await until(one_offer, "the dead node's offer to run out")
        assert sim.task(task_id).attempt == 1
        sim.skip(sim.state.parameters["params"].stall_blocks)
        await until(lambda: placed(2), "the second placement")
        assert sim.task(task_id).shards[0].node_id != address(GANG[dead])


async def test_a_refusal_is_told_and_tried_again_after_growing_pauses(town: Town) -> None:
    """Each try that reaches a block costs its fee: two a second for ever would empty the scheduler's account."""
    sim, reader = town.chain.sim, town.stub("north", "supervisor", "north-supervisor")
    rich = {name: sim.balance(f"{name}-scheduler") for name in GANG}
    for name, balance in rich.items():
        sim.send(f"{name}-scheduler", tx_pb2.Transfer(to=address("bob"), amount_utlk=balance - 1_000))
    async with beating(town, slots=1):
        task_id = sim.create()

        async def refused_once() -> bool:
            return "the ledger refused the placement" in await told(reader, task_id)

        await until(refused_once, "the refusal as the reason")
        begun, tried = time.monotonic(), town.chain.broadcasts

        async def tried_twice_more() -> bool:
            return town.chain.broadcasts >= tried + 2

        await until(tried_twice_more, "two more tries")
        assert time.monotonic() - begun > 2, "the pauses do not grow"
        for name in GANG:
            sim.send("bob", tx_pb2.Transfer(to=address(f"{name}-scheduler"), amount_utlk=1_000_000))

        async def placed() -> bool:
            return sim.task(task_id).phase is TaskPhase.RUNNING

        await until(placed, "the placement once the fee can be paid")


async def test_an_agent_speaks_for_its_own_node_even_where_nobody_offers_it(town: Town) -> None:
    agent, reader = town.stub("north", "agent", "north-1"), town.stub("north", "supervisor", "north-supervisor")

    async def ready() -> bool:
        return bool((await offers(reader)).leader)

    await until(ready, "a leader")
    borrowed = offer_of("north")
    borrowed.node_id = address("east-1")
    assert (await refused(agent.Offer(scheduler_pb2.OfferRequest(offer=borrowed), timeout=5))).code == "wrong_node"
    renamed = offer_of("north")
    renamed.name = "north-2"
    assert (await refused(agent.Offer(scheduler_pb2.OfferRequest(offer=renamed), timeout=5))).code == "bad_offer"
    report = scheduler_pb2.ReportShardRequest(task_id="task-1", node_id=address("east-1"), kind="node_lost")
    assert (await refused(agent.ReportShard(report, timeout=5))).code == "wrong_node"
    large = offer_of("north")
    large.reason = "x" * 20_000
    assert (await refused(agent.Offer(scheduler_pb2.OfferRequest(offer=large), timeout=5))).family == "exhausted"


async def test_a_leader_that_stood_still_for_longer_than_its_term_lives_on_as_a_follower(town: Town) -> None:
    readers = {name: town.stub(name, "supervisor", f"{name}-supervisor") for name in GANG}

    async def leads(by: str, who: set[str]) -> bool:
        return (await offers(readers[by])).leader in who

    await until(lambda: leads("north", set(GANG)), "a leader")
    first = (await offers(readers["north"])).leader
    other = next(name for name in GANG if name != first)
    await until(lambda: leads(other, {first}), "the other scheduler to see the leader")
    stopped = town.running[f"{first}-scheduler"]
    stopped.send_signal(signal.SIGSTOP)
    try:
        await until(lambda: leads(other, {other}), "the other leader")
    finally:
        stopped.send_signal(signal.SIGCONT)
    await until(lambda: leads(first, {other}), "the first to follow")
    log = town.folder / f"{first}-scheduler.log"

    async def gave_up_its_term() -> bool:
        return "leads no more" in log.read_text() or stopped.poll() is not None

    await until(gave_up_its_term, "the first to notice that its term is over")
    town.kill(f"{other}-scheduler")
    await until(lambda: leads(first, {first}), "the first to lead again")
    assert stopped.poll() is None, log.read_text()[-2000:]


async def test_a_leader_without_its_ledger_node_gives_way_to_one_that_has_it(town: Town) -> None:
    sim, readers = town.chain.sim, {name: town.stub(name, "supervisor", f"{name}-supervisor") for name in GANG}
    async with beating(town, slots=1):

        async def all_is_there() -> bool:
            seen = [await offers(reader) for reader in readers.values()]
            return all(each.leader and len(each.offers) == len(GANG) for each in seen)

        await until(all_is_there, "a leader and both offers")
        first = (await offers(readers["north"])).leader
        await town.ledgers[first].stop(0)
        task_id = sim.create()

        async def placed() -> bool:
            return sim.task(task_id).phase is TaskPhase.RUNNING

        await until(placed, "the placement by the other organization's scheduler")
        assert (await offers(readers[first])).leader != first
        asked = readers[first].Explain(scheduler_pb2.ExplainRequest(task_id=task_id), timeout=20)
        assert (await refused(asked)).family == "unavailable"
        assert town.running[f"{first}-scheduler"].poll() is None
