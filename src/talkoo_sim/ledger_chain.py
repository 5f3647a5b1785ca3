"""A chain without consensus: the production ledger application, fed block by block by a test.

Keys come from names, block hashes from heights, so the same calls always give the same chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_ledger.application import Application, FinalizeRequest, FinalizeResponse
from talkoo_ledger.context import Event
from talkoo_ledger.genesis import Genesis, GenesisAccount, GenesisOrganization, default_params
from talkoo_ledger.misbehavior import Misbehavior
from talkoo_ledger.records import Segment, Task
from talkoo_ledger.state import State, segment_key
from talkoo_ledger.transition import TxResult

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_core.errors import error_of
from talkoo_core.ids import address_of_key
from talkoo_core.signing import PrivateKey
from talkoo_runtime.transactions import sign_transaction

CHAIN_ID = "sim-1"
ORGANIZATIONS = ("north", "east", "south", "west")
NODES = ("north-1", "north-2", "east-1", "south-1", "west-1", "west-2")
USERS = ("alice", "bob")
STAKE_UTLK = 1_000 * UTLK_PER_TLK
NODE_STAKE_UTLK = 20 * UTLK_PER_TLK
BLOCK_NS = 1_000_000_000


def key_of(name: str) -> PrivateKey:
    return PrivateKey.from_seed(hashlib.sha256(f"sim key {name}".encode()).digest())


def address(name: str) -> str:
    return address_of_key(key_of(name).public.raw)


def hex_of(text: str) -> str:
    """A blob's hash, made up from a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def make_genesis(**params: int) -> Genesis:
    """Four organizations of equal stake, six listed nodes, two users; parameters may be changed by name."""

    def key(name: str) -> str:
        return key_of(name).public.raw.hex()

    organizations = [
        GenesisOrganization(
            name=name,
            owner_key=key(name),
            consensus_key=key(f"{name}-consensus"),
            scheduler_key=key(f"{name}-scheduler"),
            validator_key=key(f"{name}-validator"),
            stake_utlk=STAKE_UTLK,
            node_keys=[key(node) for node in NODES if node.startswith(f"{name}-")],
        )
        for name in ORGANIZATIONS
    ]
    holders = dict.fromkeys((*ORGANIZATIONS, *USERS), 1000) | dict.fromkeys(NODES, 100)
    for name in ORGANIZATIONS:
        holders |= {f"{name}-scheduler": 10, f"{name}-validator": 10}
    accounts = [GenesisAccount(address(name), tlk * UTLK_PER_TLK, name) for name, tlk in holders.items()]
    return Genesis(CHAIN_ID, 1, default_params() | params, organizations, accounts)


@dataclass(slots=True)
class LedgerChain:
    """One application and everything that happened to it."""

    genesis: Genesis
    application: Application = field(default_factory=Application)
    blocks: list[FinalizeRequest] = field(default_factory=list)
    responses: list[FinalizeResponse] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.application.init_chain(self.genesis)

    @property
    def state(self) -> State:
        return self.application.state

    @property
    def height(self) -> int:
        return self.application.info().height

    def signed(self, name: str, message: Message, *, ahead: int = 0, memo: str = "", fee_utlk: int = 1_000) -> bytes:
        """A transaction of a named key; `ahead` counts its transactions that wait for the same block."""
        account = self.state.accounts.get(address(name))
        nonce = (account.nonce if account else 0) + ahead
        return sign_transaction(key_of(name), CHAIN_ID, nonce, fee_utlk, message, memo)

    def block(self, *txs: bytes, misbehavior: tuple[Misbehavior, ...] = ()) -> FinalizeResponse:
        """Decide one block, proposed by the organizations in turn."""
        height = self.height + 1
        proposer = key_of(f"{ORGANIZATIONS[height % len(ORGANIZATIONS)]}-consensus")
        block_hash = hashlib.sha256(f"block {height}".encode() + b"".join(txs)).digest()
        request = FinalizeRequest(height, block_hash, height * BLOCK_NS, proposer.public.address, txs, misbehavior)
        response = self.application.finalize_block(request)
        self.application.commit()
        self.blocks.append(request)
        self.responses.append(response)
        return response

    def send(self, name: str, message: Message, *, memo: str = "") -> TxResult:
        """One transaction in a block of its own. Raises the typed error of a failed one."""
        result = self.block(self.signed(name, message, memo=memo)).tx_results[0]
        if result.code:
            raise error_of(result.family, result.message, result.error_code)
        return result

    def skip(self, blocks: int) -> None:
        for _ in range(blocks):
            self.block()

    def events(self, type_: str = "") -> list[Event]:
        """Everything that happened so far, in order; of one type if asked."""
        return [event for each in self.responses for event in each.all_events() if type_ in ("", event.type)]

    def balance(self, name: str) -> int:
        account = self.state.accounts.get(address(name))
        return account.balance_utlk if account else 0

    def task(self, task_id: str) -> Task:
        return self.state.tasks[task_id]

    def segment(self, task_id: str, attempt: int, number: int) -> Segment:
        return self.state.segments[segment_key(task_id, attempt, number)]

    # --- what members do ---

    def register(self, *names: str, price_utlk_per_gflop: int = 1_000_000) -> None:
        for name in names or NODES:
            self.send(name, registration(name, price_utlk_per_gflop=price_utlk_per_gflop))

    def create(self, owner: str = "alice", *, escrow_utlk: int = 50 * UTLK_PER_TLK, **changes: Any) -> str:
        message = tx_pb2.CreateTask(spec=task_spec(**changes), escrow_utlk=escrow_utlk)
        return self.send(owner, message).born_id

    def place(self, task_id: str, *names: str, scheduler: str = "north-scheduler") -> None:
        self.send(scheduler, self.placement(task_id, *names))

    def placement(self, task_id: str, *names: str, price_utlk_per_gflop: int = 1_000_000) -> tx_pb2.PlaceTask:
        task = self.task(task_id)
        batch, count = task.spec.global_batch, len(names)
        shards = [
            tx_pb2.Shard(
                node_id=address(name),
                rank=rank,
                samples=batch // count + (batch % count if rank == 0 else 0),
                price_utlk_per_gflop=price_utlk_per_gflop,
            )
            for rank, name in enumerate(names)
        ]
        return tx_pb2.PlaceTask(task_id=task_id, attempt=task.attempt + 1, shards=shards, reason="they fit")

    def commitment(self, task_id: str, rank: int, /, **changes: Any) -> tx_pb2.CommitSegment:
        """What an honest rank commits for the open segment; single fields may be changed."""
        task = self.task(task_id)
        segment = self.segment(task_id, task.attempt, task.next_segment)
        samples = task.shards[rank].samples * segment.steps
        place = f"{task_id} {segment.segment}"
        values: dict[str, Any] = {
            "task_id": task_id,
            "attempt": task.attempt,
            "segment": task.next_segment,
            "rank": rank,
            "root": hashlib.sha256(f"root {place} {rank}".encode()).digest(),
            "transcript_sha256": hex_of(f"transcript {place} {rank}"),
            "params_sha256": hex_of(f"params {place}"),
            "optimizer_sha256": hex_of(f"optimizer {place}"),
            "samples": samples,
            "flops": samples * task.spec.flops_per_sample,
            "energy_mj": 5_000,
            "duration_ms": 100,
        }
        return tx_pb2.CommitSegment(**(values | changes))

    def commit_all(self, task_id: str, names: Sequence[str]) -> FinalizeResponse:
        """Every rank commits the open segment, all in one block."""
        txs = [self.signed(name, self.commitment(task_id, rank)) for rank, name in enumerate(names)]
        response = self.block(*txs)
        assert all(result.code == 0 for result in response.tx_results), response.tx_results
        return response

    def judge(self, verdict: tx_pb2.Verdict, organizations: Sequence[str] = ORGANIZATIONS[:3]) -> None:
        """These organizations commit to the same verdict and reveal it, in two blocks."""
        raw = verdict.SerializeToString()
        commits, reveals = [], []
        for name in organizations:
            salt = hashlib.sha256(f"salt {name}".encode()).digest()
            commit = tx_pb2.CommitVerdict(
                task_id=verdict.task_id,
                attempt=verdict.attempt,
                segment=verdict.segment,
                digest=hashlib.sha256(salt + raw).digest(),
            )
            commits.append(self.signed(f"{name}-validator", commit))
            reveals.append(self.signed(f"{name}-validator", tx_pb2.RevealVerdict(salt=salt, verdict=raw), ahead=1))
        for txs in (commits, reveals):
            results = self.block(*txs).tx_results
            assert all(result.code == 0 for result in results), results


def registration(
    name: str, *, price_utlk_per_gflop: int = 1_000_000, stake_utlk: int = NODE_STAKE_UTLK, endorsement: bytes = b""
) -> tx_pb2.RegisterNode:
    return tx_pb2.RegisterNode(
        name=name,
        organization=name.split("-")[0],
        endpoint="127.0.0.1:7700",
        hardware_class="cpu-x86_64",
        device="a test",
        memory_bytes=1 << 30,
        speed_flops=10**9,
        price_utlk_per_gflop=price_utlk_per_gflop,
        stake_utlk=stake_utlk,
        power_mw=15_000,
        power_source="declared",
        request_price_utlk=50_000,
        endorsement=endorsement,
    )


def task_spec(**changes: Any) -> tx_pb2.TaskSpec:
    """A small task of three segments that costs 12 TLK at the price of 2 TLK per GFLOP."""
    values: dict[str, Any] = {
        "name": "digits",
        "mode": "ddp",
        "code": tx_pb2.BlobRef(sha256=hex_of("code"), size_bytes=1_000),
        "module": "digits",
        "data": tx_pb2.BlobRef(sha256=hex_of("data"), size_bytes=1_000),
        "data_name": "digits.npz",
        "config_json": "{}",
        "optimizer": tx_pb2.Optimizer(name="adam", options_json='{"lr":"0.001"}'),
        "global_batch": 100,
        "steps": 30,
        "steps_per_segment": 10,
        "min_nodes": 2,
        "max_nodes": 4,
        "memory_bytes": 1 << 20,
        "price_utlk_per_gflop": 2_000_000,
        "audit_rate_ppm": 300_000,
        "seed": 7,
        "model_name": "digits",
        "flops_per_sample": 2_000_000,
        "licence": "CC-BY-4.0",
        "request_price_utlk": 10_000,
    }
    return tx_pb2.TaskSpec(**(values | changes))


def verdict_of(
    segment: Segment, *, forgers: Sequence[int] = (), available: bool = True, correct: int = 0, total: int = 0
) -> tx_pb2.Verdict:
    """What a validator says of a segment whose ranks in `forgers` made things up."""
    findings = [
        tx_pb2.RankFinding(rank=rank, honest=rank not in forgers, first_bad_step=0, reason="")
        for rank in range(len(segment.shards))
    ]
    return tx_pb2.Verdict(
        task_id=segment.task_id,
        attempt=segment.attempt,
        segment=segment.segment,
        findings=findings,
        available=available,
        heldout_correct=correct,
        heldout_total=total,
    )
