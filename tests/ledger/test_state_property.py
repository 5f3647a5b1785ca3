"""Random chains of valid and invalid transactions: what must hold whatever anybody sends."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_ledger import tree, wire
from talkoo_ledger.application import Application, replay
from talkoo_ledger.context import Block, Context
from talkoo_ledger.records import Account, SegmentPhase, TaskPhase
from talkoo_ledger.transition import apply_transaction, holdings

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_sim.ledger_chain import (
    NODES,
    ORGANIZATIONS,
    USERS,
    LedgerChain,
    address,
    make_genesis,
    registration,
    task_spec,
    verdict_of,
)

TLK = UTLK_PER_TLK
FAST = {
    "epoch_blocks": 5,
    "audit_deadline_blocks": 10,
    "request_deadline_blocks": 3,
    "unbonding_blocks": 45,
    "jail_blocks": 5,
    "stall_blocks": 4,
}
"""Deadlines short enough for a random chain to meet all of them."""
BLOCKS = 80


class Crowd:
    """Everybody at once: mostly sensible members, sometimes mistaken or dishonest ones, from one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.chain = LedgerChain(make_genesis(**FAST))
        self.salts: dict[tuple[str, str], tuple[bytes, bytes]] = {}

    def run(self) -> None:
        for name in NODES[:5]:
            self.chain.block(self.chain.signed(name, registration(name)))
        for _ in range(BLOCKS):
            messages: dict[str, list[Any]] = {}
            for _ in range(self.chance.randrange(6)):
                sender, message = self.move()
                messages.setdefault(sender, []).append(message)
            txs = [
                self.chain.signed(sender, message, ahead=ahead)
                for sender, sent in messages.items()
                for ahead, message in enumerate(sent)
            ]
            self.probe(txs)
            if txs and self.chance.random() < 0.1:
                txs.append(self.chance.choice([txs[0], txs[0][:-1], b"noise"]))
            self.chain.block(*txs)

    def probe(self, txs: list[bytes]) -> None:
        """Apply each transaction on a layer that is thrown away: a failed one takes fee and nonce, and no more."""
        for data in txs:
            layer = self.chain.state.above()
            tx = wire.decode_transaction(data, 1 << 16)
            block = Block(self.chain.height + 1, bytes(32), 1, "north")
            result = apply_transaction(Context(layer, block), tx)
            if result.code == 0:
                continue
            changes = layer.changes()
            if result.fee_utlk == 0:
                assert changes == []
                continue
            [(module, key, before, after)] = changes
            assert (module, key) == ("accounts", tx.sender)
            assert isinstance(before, Account)
            assert after == replace(before, nonce=before.nonce + 1, balance_utlk=before.balance_utlk - tx.fee_utlk)

    def move(self) -> tuple[str, Any]:
        moves = [self.work] * 5 + [self.judge] * 8 + [self.place] * 3
        moves += [self.pay, self.stake, self.start, self.stop, self.ask]
        return self.chance.choice(moves)()

    def anyone(self) -> str:
        return self.chance.choice((*ORGANIZATIONS, *USERS, *NODES))

    def a_task(self) -> str:
        live = [task.id for task in self.chain.state.tasks.live()]
        return self.chance.choice(live) if live else "task-none"

    def pay(self) -> tuple[str, Any]:
        amount = self.chance.choice([1, TLK, 90 * TLK, 5_000 * TLK])
        return self.anyone(), tx_pb2.Transfer(to=address(self.anyone()), amount_utlk=amount)

    def stake(self) -> tuple[str, Any]:
        name = self.chance.choice((*ORGANIZATIONS, *NODES))
        subject = name if name in ORGANIZATIONS else address(name)
        kind = self.chance.choice([tx_pb2.Bond, tx_pb2.Unbond])
        return name, kind(subject=subject, amount_utlk=self.chance.choice([1, TLK, 10 * TLK, 20 * TLK]))

    def start(self) -> tuple[str, Any]:
        user = self.chance.choice(USERS)
        spec = task_spec(model_name=f"model-{user}", steps=self.chance.choice([10, 30]))
        return user, tx_pb2.CreateTask(spec=spec, escrow_utlk=self.chance.choice([1, 20 * TLK, 50 * TLK]))

    def stop(self) -> tuple[str, Any]:
        task_id = self.a_task()
        attempt = self.chain.task(task_id).attempt if task_id != "task-none" else 0
        kind = self.chance.choice(["loss_nan", "node_lost"])
        return self.chance.choice(
            [
                (self.chance.choice(USERS), tx_pb2.CancelTask(task_id=task_id)),
                (self.anyone(), tx_pb2.FundTask(task_id=task_id, amount_utlk=TLK)),
                (self.anyone(), tx_pb2.FailTask(task_id=task_id, attempt=attempt, kind=kind)),
            ]
        )

    def place(self) -> tuple[str, Any]:
        task_id = self.a_task()
        if task_id == "task-none":
            return self.start()
        gang = self.chance.sample(NODES, self.chance.choice([2, 2, 3]))
        return f"{self.chance.choice(ORGANIZATIONS)}-scheduler", self.chain.placement(task_id, *gang)

    def work(self) -> tuple[str, Any]:
        running = [task for task in self.chain.state.tasks.live() if task.phase is TaskPhase.RUNNING]
        if not running:
            return self.place()
        task = self.chance.choice(running)
        segment = self.chain.segment(task.id, task.attempt, task.next_segment)
        done = {commitment.segment.rank for commitment in segment.commitments}
        rank = self.chance.choice([shard.rank for shard in task.shards if shard.rank not in done])
        name = next((n for n in NODES if address(n) == task.shards[rank].node_id), "alice")
        return name, self.chain.commitment(task.id, rank)

    def judge(self) -> tuple[str, Any]:
        audited = [s for s in self.chain.state.segments.all() if s.phase is SegmentPhase.AUDITED]
        if not audited:
            return self.work()
        segment = self.chance.choice(audited)
        name = self.chance.choice(ORGANIZATIONS)
        place = f"{segment.task_id}/{segment.attempt}/{segment.segment}"
        if (name, place) in self.salts:
            salt, raw = self.salts[name, place]
            return f"{name}-validator", tx_pb2.RevealVerdict(salt=salt, verdict=raw)
        # Honest validators agree; what they agree on differs from segment to segment.
        truth = random.Random(place).choice(["honest", "honest", "forged", "unavailable"])
        forgers = [0] if truth == "forged" and self.chance.random() < 0.95 else []
        raw = verdict_of(segment, forgers=forgers, available=truth != "unavailable").SerializeToString()
        salt = self.chance.randbytes(32)
        self.salts[name, place] = (salt, raw)
        digest = hashlib.sha256(salt + raw).digest()
        return f"{name}-validator", tx_pb2.CommitVerdict(
            task_id=segment.task_id, attempt=segment.attempt, segment=segment.segment, digest=digest
        )

    def ask(self) -> tuple[str, Any]:
        waiting = self.chain.state.requests.live()
        if waiting and self.chance.random() < 0.5:
            name = next(n for n in NODES if address(n) == waiting[0].node_id)
            return name, tx_pb2.CompleteRequest(request_id=waiting[0].id, output_sha256=bytes(32))
        model = self.chance.choice([model.version for model in self.chain.state.models.all()] or ["digits@1"])
        node = address(self.chance.choice(NODES))
        return self.chance.choice(USERS), tx_pb2.RequestModel(
            version=model, node_id=node, input_sha256=bytes(32), price_utlk=60_000
        )


@given(st.integers(0, 2**32))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_chain_keeps_its_promises(seed: int) -> None:
    crowd = Crowd(seed)
    crowd.run()
    chain = crowd.chain
    info = chain.application.info()
    # Replay equals live.
    assert replay(chain.genesis, chain.blocks).info() == info
    # A snapshot restores the same state, in any order of its entries, and its sums agree (load checks them).
    entries = list(chain.application.snapshot())
    crowd.chance.shuffle(entries)
    Application().load(entries, info.height, info.app_hash)
    # Tokens are conserved, counted from the records alone.
    supply = chain.state.supply
    held = [sum(column) for column in zip(*(holdings(record) for record in _records(chain)), strict=True)]
    assert sum(held) == supply.genesis_utlk + supply.emitted_utlk - supply.burned_utlk
    assert min(min(holdings(record)) for record in _records(chain)) >= 0
    # Escrow is where tasks that may still pay are, and nowhere else.
    for task in chain.state.tasks.all():
        final = task.phase in (TaskPhase.COMPLETED, TaskPhase.FAILED, TaskPhase.CANCELLED)
        assert not (final and task.accepted_segments == task.next_segment and task.escrow_utlk)
        assert task.accepted_segments <= task.next_segment
    # The root depends on the contents alone.
    for module, entries_of in _by_module(chain).items():
        assert tree.root_of(tree.update(None, entries_of)) == chain.application.query(module, "x", True).module_root


def _records(chain: LedgerChain) -> list[Any]:
    return [record for module in chain.state.MODULES for record in chain.state.table(module).all()]


def _by_module(chain: LedgerChain) -> dict[str, dict[str, bytes | None]]:
    modules: dict[str, dict[str, bytes | None]] = {}
    for module, key, value in chain.application.snapshot():
        modules.setdefault(module, {})[key] = value
    return modules


def test_random_chains_meet_every_event() -> None:
    """The crowd above is worth its time only if it reaches everything."""
    seen: set[str] = set()
    for seed in range(5):
        crowd = Crowd(seed)
        crowd.run()
        seen |= {event.type for event in crowd.chain.events()}
    missing = {
        "transfer",
        "task_created",
        "task_placed",
        "segment_opened",
        "segment_committed",
        "audit_opened",
        "verdict",
        "segment_accepted",
        "segment_discarded",
        "slashed",
        "payment",
        "task_completed",
        "task_cancelled",
        "node_registered",
        "power_changed",
        "epoch",
    } - seen
    assert not missing
