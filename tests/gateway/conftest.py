"""A real gateway over gRPC and HTTPS with mutual TLS, before STAND-INS of the services behind it.

The stand-ins keep dicts and apply just enough of a transaction to answer; they know nothing of consensus, placement or
training. The real ones are met in tests/e2e.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from talkoo_api.agent.v1 import agent_pb2, agent_pb2_grpc
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, state_pb2, tx_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from talkoo_api.validator.v1 import validator_pb2, validator_pb2_grpc
from talkoo_gateway.service import serve
from talkoo_gateway.settings import GatewaySettings

from talkoo.client_async import AsyncClient
from talkoo.profile import Profile
from talkoo_core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound, Unavailable
from talkoo_core.ids import address_of_key, born_id
from talkoo_core.signing import PrivateKey
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.keys import address_of, save_key
from talkoo_runtime.pki import ensure_authority, ensure_certificate, identity_uri, trust_bundle
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_runtime.supervision import Background
from talkoo_sim.ports import free_port

FEDERATION = "talkoo-test"
ALICE = PrivateKey.from_seed(b"a" * 32)
BOB = PrivateKey.from_seed(b"b" * 32)
NODE_KEYS = [PrivateKey.from_seed(bytes([n]) * 32) for n in (1, 2)]
NODE_IDS = [address_of_key(key.public.raw) for key in NODE_KEYS]
FEE = 1000


class StandInLedger(service_pb2_grpc.LedgerServicer):
    """STAND-IN: state in a dict, every transaction its own block, no consensus."""

    def __init__(self) -> None:
        self.state: dict[str, dict[str, Any]] = {
            name: {}
            for name in ("accounts", "nodes", "tasks", "segments", "payments", "models", "requests", "organizations")
        }
        self.blocks: list[service_pb2.BlockEvents] = []
        self.results: dict[bytes, service_pb2.TxResult] = {}
        self.changed = asyncio.Condition()
        for key, label, balance in ((ALICE, "alice", 100_000_000), (BOB, "bob", 5_000_000)):
            address = address_of(key)
            self.state["accounts"][address] = state_pb2.Account(address=address, balance_utlk=balance, label=label)

    async def decide(self, *events: service_pb2.Event) -> int:
        """A new block with these events."""
        async with self.changed:
            height = len(self.blocks) + 1
            self.blocks.append(
                service_pb2.BlockEvents(
                    height=height,
                    time_ns=1_700_000_000_000_000_000 + height * 10**9,
                    hash=hashlib.sha256(str(height).encode()).digest(),
                    proposer="north",
                    txs=1,
                    events=events,
                )
            )
            self.changed.notify_all()
        return height

    async def Broadcast(self, request: service_pb2.BroadcastRequest, context: Any) -> service_pb2.BroadcastResponse:  # noqa: N802
        signed = tx_pb2.SignedTx.FromString(request.tx)
        body = tx_pb2.TxBody.FromString(signed.body)
        sender = address_of_key(signed.public_key)
        tx_hash = hashlib.sha256(request.tx).digest()
        account = self.state["accounts"].get(sender)
        if not signed.signature:
            raise InvalidInput("the transaction is not signed", code="bad_signature")
        if account is None or account.balance_utlk < body.fee_utlk:
            raise InsufficientFunds("the account cannot pay the fee", code="no_fee")
        if body.nonce != account.nonce:
            raise Conflict(f"the nonce is {body.nonce}, not {account.nonce}", code="nonce_wrong")
        account.nonce += 1
        account.balance_utlk -= body.fee_utlk
        kind = body.WhichOneof("message")
        result = service_pb2.TxResult(hash=tx_hash, kind=kind, sender=sender)
        events = self.apply(kind, body, sender, tx_hash, result)
        result.height = await self.decide(*events)
        self.results[tx_hash] = result
        return service_pb2.BroadcastResponse(hash=tx_hash)

    def apply(
        self, kind: str, body: tx_pb2.TxBody, sender: str, tx_hash: bytes, result: service_pb2.TxResult
    ) -> list[service_pb2.Event]:
        account = self.state["accounts"][sender]
        if kind == "transfer":
            if account.balance_utlk < body.transfer.amount_utlk:
                result.code, result.family, result.error_code = 1, "insufficient_funds", "balance"
                result.message = "the account holds too little"
                return []
            account.balance_utlk -= body.transfer.amount_utlk
            other = self.state["accounts"].setdefault(body.transfer.to, state_pb2.Account(address=body.transfer.to))
            other.balance_utlk += body.transfer.amount_utlk
            return [service_pb2.Event(type="transfer", subject=body.transfer.to)]
        if kind == "create_task":
            result.born_id = born_id("task", tx_hash)
            account.balance_utlk -= body.create_task.escrow_utlk
            self.state["tasks"][result.born_id] = state_pb2.Task(
                id=result.born_id,
                owner=sender,
                spec=body.create_task.spec,
                phase=state_pb2.TASK_PHASE_PENDING,
                escrow_utlk=body.create_task.escrow_utlk,
                created_height=len(self.blocks) + 1,
                trace=body.memo,
            )
            return [service_pb2.Event(type="task_created", subject=result.born_id)]
        if kind == "cancel_task":
            self.state["tasks"][body.cancel_task.task_id].phase = state_pb2.TASK_PHASE_CANCELLED
            return [service_pb2.Event(type="task_cancelled", subject=body.cancel_task.task_id)]
        if kind == "request_model":
            result.born_id = born_id("req", tx_hash)
            self.state["requests"][result.born_id] = state_pb2.ModelRequest(
                id=result.born_id,
                version=body.request_model.version,
                sender=sender,
                node_id=body.request_model.node_id,
                input_sha256=body.request_model.input_sha256,
                price_utlk=body.request_model.price_utlk,
                state="open",
            )
            return [service_pb2.Event(type="request_opened", subject=result.born_id)]
        raise AssertionError(kind)

    async def WaitTx(self, request: service_pb2.WaitTxRequest, context: Any) -> service_pb2.TxResult:  # noqa: N802
        if request.hash not in self.results:
            raise Unavailable("not final yet", code="not_final_yet")
        return self.results[request.hash]

    async def GetStatus(self, request: service_pb2.GetStatusRequest, context: Any) -> service_pb2.Status:  # noqa: N802
        return service_pb2.Status(chain_id="chain-test", organization="north", height=len(self.blocks), peers=["south"])

    async def Get(self, request: service_pb2.GetRequest, context: Any) -> service_pb2.GetResponse:  # noqa: N802
        found = self.state.get(request.module, {}).get(request.key)
        if found is None:
            raise NotFound(f"there is no {request.key!r} under {request.module}", code="no_value")
        return service_pb2.GetResponse(value=found.SerializeToString(), height=len(self.blocks))

    async def List(self, request: service_pb2.ListRequest, context: Any) -> service_pb2.ListResponse:  # noqa: N802
        keys = sorted(key for key in self.state[request.module] if key.startswith(request.prefix))
        keys = keys[::-1] if request.reverse else keys
        if request.after:
            keys = keys[keys.index(request.after) + 1 :]
        limit = request.limit or 100
        entries = [
            service_pb2.Entry(key=key, value=self.state[request.module][key].SerializeToString())
            for key in keys[:limit]
        ]
        return service_pb2.ListResponse(entries=entries, height=len(self.blocks), more=len(keys) > limit)

    async def GetSupply(self, request: service_pb2.GetSupplyRequest, context: Any) -> state_pb2.Supply:  # noqa: N802
        return state_pb2.Supply(genesis_utlk=105_000_000, accounts_utlk=105_000_000)

    async def GetParams(self, request: service_pb2.GetParamsRequest, context: Any) -> state_pb2.Params:  # noqa: N802
        return state_pb2.Params(min_fee_utlk=FEE, validation_ppm=100_000)

    async def GetGenesis(self, request: service_pb2.GetGenesisRequest, context: Any) -> service_pb2.Genesis:  # noqa: N802
        return service_pb2.Genesis(json='{"chain_id":"chain-test"}')

    async def Blocks(  # noqa: N802
        self, request: service_pb2.BlocksRequest, context: Any
    ) -> AsyncIterator[service_pb2.RawBlock]:
        for height in range(request.from_height, (request.to_height or len(self.blocks)) + 1):
            yield service_pb2.RawBlock(height=height, block=b"block", commit=b"commit")

    async def Follow(  # noqa: N802
        self, request: service_pb2.FollowRequest, context: Any
    ) -> AsyncIterator[service_pb2.BlockEvents]:
        index = max(request.from_height - 1, 0) if request.from_height else len(self.blocks)
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda seen=index: len(self.blocks) > seen)
            yield self.blocks[index]
            index += 1


class StandInScheduler(scheduler_pb2_grpc.SchedulerServicer):
    """STAND-IN: the offers and reasons it was given."""

    def __init__(self) -> None:
        self.offers: list[scheduler_pb2.Offer] = []

    async def ListOffers(  # noqa: N802
        self, request: scheduler_pb2.ListOffersRequest, context: Any
    ) -> scheduler_pb2.ListOffersResponse:
        return scheduler_pb2.ListOffersResponse(offers=self.offers, leader="north")

    async def Explain(self, request: scheduler_pb2.ExplainRequest, context: Any) -> scheduler_pb2.Explanation:  # noqa: N802
        return scheduler_pb2.Explanation(
            task_id=request.task_id,
            summary="waits: 1 of 3 nodes fit",
            nodes=[scheduler_pb2.NodeReason(name="north-1", fits=False, reason="256 MiB free, 512 MiB needed")],
        )


class StandInValidator(validator_pb2_grpc.ValidatorServicer):
    """STAND-IN: one audit."""

    async def ListAudits(  # noqa: N802
        self, request: validator_pb2.ListAuditsRequest, context: Any
    ) -> validator_pb2.ListAuditsResponse:
        return validator_pb2.ListAuditsResponse(audits=[validator_pb2.Audit(task_id="task-1", state="revealed")])


class StandInAgent(agent_pb2_grpc.AgentServicer):
    """STAND-IN: says the lines it was given, then what is said while it is followed; answers with a sum."""

    def __init__(self, name: str, key: PrivateKey) -> None:
        self.name = name
        self.key = key
        self.lines: list[agent_pb2.LogLine] = []
        self.updates: list[agent_pb2.ProgressUpdate] = []
        self.changed = asyncio.Condition()
        self.forge = False

    async def say(self, text: str, time_ns: int) -> None:
        async with self.changed:
            self.lines.append(agent_pb2.LogLine(time_ns=time_ns, node=self.name, text=text))
            self.changed.notify_all()

    async def report(self, step: int, time_ns: int, loss: float = 0.5) -> None:
        async with self.changed:
            self.updates.append(
                agent_pb2.ProgressUpdate(
                    attempt=1, step=step, steps=30, loss=loss, time_ns=time_ns, node=self.name, stage="training"
                )
            )
            self.changed.notify_all()

    async def Logs(self, request: agent_pb2.LogsRequest, context: Any) -> AsyncIterator[agent_pb2.LogLine]:  # noqa: N802
        index = 0
        while True:
            while index < len(self.lines):
                yield self.lines[index]
                index += 1
            if not request.follow:
                return
            async with self.changed:
                await self.changed.wait_for(lambda seen=index: len(self.lines) > seen)

    async def Progress(  # noqa: N802
        self, request: agent_pb2.ProgressRequest, context: Any
    ) -> AsyncIterator[agent_pb2.ProgressUpdate]:
        index = 0
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda seen=index: len(self.updates) > seen)
            yield self.updates[index]
            index += 1

    async def Infer(self, request: agent_pb2.InferRequest, context: Any) -> agent_pb2.InferResponse:  # noqa: N802
        output = b"[" + str(len(request.input_json)).encode() + b"]"
        sha256 = hashlib.sha256(output).digest()
        signed = b"talkoo/answer/v1\n" + request.request_id.encode() + b"\n" + sha256
        return agent_pb2.InferResponse(
            output_json=output,
            output_sha256=sha256,
            signature=self.key.sign(signed + (b"!" if self.forge else b"")),
            node_id=address_of(self.key),
            public_key=self.key.public.raw,
        )


@dataclass
class House:
    """What a test holds: the stand-ins, the gateway's addresses, and the folder of certificates."""

    folder: Path
    ledger: StandInLedger
    scheduler: StandInScheduler
    agents: list[StandInAgent]
    grpc_address: str
    http_address: str
    token: str
    ledger_address: str = ""
    scheduler_address: str = ""
    validator_address: str = ""
    servers: list[grpc.aio.Server] = field(default_factory=list)

    def certify(self, role: str, name: str, organization: str = "north") -> Path:
        """A folder with a certificate of a member, and the trust bundle beside it."""
        folder = self.folder / organization / role / name
        authority = ensure_authority(self.folder / "authorities" / organization, organization)
        ensure_certificate(authority, folder, identity_uri(FEDERATION, organization, role, name))
        return folder

    def settings(self, role: str, name: str, **more: Any) -> dict[str, Any]:
        folder = self.certify(role, name)
        return {
            "federation": FEDERATION,
            "organization": "north",
            "name": name,
            "listen": f"127.0.0.1:{free_port()}",
            "state_dir": str(folder / "state"),
            "certificate": str(folder / "certificate.pem"),
            "private_key": str(folder / "private-key.pem"),
            "trust_bundle": str(self.folder / "trust.pem"),
            **more,
        }

    def profile(self, key: PrivateKey = ALICE, name: str = "alice", role: str = "user") -> Profile:
        folder = self.certify(role, name)
        if not (folder / "account.key").exists():
            save_key(folder / "account.key", key.seed)
        return Profile(
            home=self.folder,
            federation=FEDERATION,
            organization="north",
            gateway=self.grpc_address,
            http=self.http_address,
            trust_bundle=self.folder / "trust.pem",
            certificate=folder / "certificate.pem",
            private_key=folder / "private-key.pem",
            account_key=folder / "account.key",
            user=name,
        )

    def add_task(self, phase: int = state_pb2.TASK_PHASE_RUNNING, nodes: tuple[int, ...] = (0,)) -> str:
        """A task on the ledger that is placed on some of the nodes."""
        task_id = f"task-{len(self.ledger.state['tasks']):016x}"
        self.ledger.state["tasks"][task_id] = state_pb2.Task(
            id=task_id,
            spec=tx_pb2.TaskSpec(name="digits", steps=30, steps_per_segment=10),
            phase=phase,
            attempt=1,
            shards=[tx_pb2.Shard(node_id=NODE_IDS[n], rank=rank, samples=8) for rank, n in enumerate(nodes)],
        )
        return task_id

    def add_model(self) -> None:
        for number in (1, 2):
            self.ledger.state["models"][f"digits@{number:06d}"] = state_pb2.ModelVersion(
                version=f"digits@{number}", model="digits", number=number, request_price_utlk=10_000
            )
        self.scheduler.offers = [
            scheduler_pb2.Offer(node_id=node_id, name=f"north-{n + 1}", state="ready")
            for n, node_id in enumerate(NODE_IDS)
        ]


async def _start(house: House, add: Any, servicer: Any, role: str, name: str) -> str:
    settings = ServiceSettings(**house.settings(role, name))
    server = make_server()
    add(servicer, server)
    await start_server(server, settings)
    house.servers.append(server)
    return settings.listen


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A running gateway and its stand-ins."""
    agents = [StandInAgent(f"north-{n + 1}", key) for n, key in enumerate(NODE_KEYS)]
    house = House(tmp_path, StandInLedger(), StandInScheduler(), agents, "", "", "")
    authorities = [ensure_authority(tmp_path / "authorities" / name, name) for name in ("north", "south")]
    (tmp_path / "trust.pem").write_bytes(trust_bundle(authorities))
    ledger = await _start(house, service_pb2_grpc.add_LedgerServicer_to_server, house.ledger, "ledger", "north-ledger")
    scheduler = await _start(
        house, scheduler_pb2_grpc.add_SchedulerServicer_to_server, house.scheduler, "scheduler", "north-scheduler"
    )
    validator = await _start(
        house, validator_pb2_grpc.add_ValidatorServicer_to_server, StandInValidator(), "validator", "north-validator"
    )
    for index, agent in enumerate(agents):
        endpoint = await _start(house, agent_pb2_grpc.add_AgentServicer_to_server, agent, "agent", agent.name)
        house.ledger.state["nodes"][NODE_IDS[index]] = state_pb2.Node(
            id=NODE_IDS[index],
            name=agent.name,
            organization="north",
            endpoint=endpoint,
            request_price_utlk=5_000 + index,
        )
    house.ledger_address, house.scheduler_address, house.validator_address = ledger, scheduler, validator
    settings = GatewaySettings(
        **house.settings(
            "gateway",
            "north-gateway",
            http_listen=f"127.0.0.1:{free_port()}",
            ledger=ledger,
            scheduler=scheduler,
            validator=validator,
            blobs=f"file://{tmp_path}/blobs",
        )
    )
    background = Background()
    stop = await serve(settings, background)
    house.grpc_address, house.http_address = settings.listen, settings.http_listen
    house.token = (Path(settings.state_dir) / "rest.token").read_text().strip()
    yield house
    await stop()
    await background.stop()
    for server in house.servers:
        await server.stop(0)


@pytest.fixture
async def client(house: House) -> AsyncIterator[AsyncClient]:
    """Alice, over the real gateway."""
    async with AsyncClient(profile=house.profile()) as client:
        yield client
