"""Every transaction and every error it can be answered with, by table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_ledger.nodes import endorsement_bytes
from talkoo_ledger.records import SegmentPhase, Task, TaskPhase
from talkoo_ledger.transition import RULES

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_core.errors import TalkooError
from talkoo_core.ids import born_id
from talkoo_sim.ledger_chain import (
    CHAIN_ID,
    NODE_STAKE_UTLK,
    LedgerChain,
    address,
    key_of,
    make_genesis,
    registration,
    task_spec,
    verdict_of,
)

TLK = UTLK_PER_TLK
GANG = ("north-1", "east-1")


@pytest.fixture
def chain() -> LedgerChain:
    return LedgerChain(make_genesis())


@pytest.fixture
def running() -> tuple[LedgerChain, str]:
    chain = LedgerChain(make_genesis())
    chain.register(*GANG, "south-1")
    task_id = chain.create()
    chain.place(task_id, *GANG)
    return chain, task_id


@pytest.fixture
def audited(running: tuple[LedgerChain, str]) -> tuple[LedgerChain, str]:
    chain, task_id = running
    chain.commit_all(task_id, GANG)
    chain.block()
    assert chain.segment(task_id, 1, 0).phase is SegmentPhase.AUDITED
    return chain, task_id


def refused(chain: LedgerChain, name: str, message: Any, code: str) -> TalkooError:
    """Send what must fail with `code`; nothing but fee, nonce and the proposer's fee may change."""
    before = {(module, key): value for module, key, value in chain.application.snapshot()}
    with pytest.raises(TalkooError) as caught:
        chain.send(name, message)
    assert caught.value.code == code, caught.value
    changed = {
        module
        for module, key, value in chain.application.snapshot()
        if before.get((module, key)) != value and not (module == "chain" and key == "chain")
    }
    assert changed <= {"accounts", "payments", "supply"}
    sender = before.get(("accounts", address(name)))
    assert sender is not None
    return caught.value


def test_transfer_moves_tokens_and_opens_accounts(chain: LedgerChain) -> None:
    chain.send("alice", tx_pb2.Transfer(to=address("new"), amount_utlk=5))
    assert chain.balance("new") == 5
    assert chain.balance("alice") == 1_000 * TLK - 5 - 1_000


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (tx_pb2.Transfer(to=address("bob"), amount_utlk=1_000 * TLK), "insufficient_funds"),
        (tx_pb2.Bond(subject="nowhere", amount_utlk=1), "unknown_organization"),
        (tx_pb2.Bond(subject=address("alice"), amount_utlk=1), "unknown_node"),
        (tx_pb2.Bond(subject="north", amount_utlk=1), "not_your_stake"),
        (tx_pb2.Unbond(subject="north", amount_utlk=1), "not_your_stake"),
        (registration("alice"), "unknown_organization"),
        (tx_pb2.CreateTask(spec=task_spec(), escrow_utlk=13 * TLK), "escrow_too_small"),
        (tx_pb2.CreateTask(spec=task_spec(), escrow_utlk=2_000 * TLK), "insufficient_funds"),
        (tx_pb2.CreateTask(spec=task_spec(parent_version="digits@1"), escrow_utlk=50 * TLK), "unknown_model"),
        (tx_pb2.FundTask(task_id="task-0", amount_utlk=1), "unknown_task"),
        (tx_pb2.CancelTask(task_id="task-0"), "unknown_task"),
        (tx_pb2.FailTask(task_id="task-0", attempt=1, kind="loss_nan"), "unknown_task"),
        (
            tx_pb2.PlaceTask(task_id="task-0", attempt=1, shards=[tx_pb2.Shard(node_id=address("north-1"), samples=1)]),
            "not_a_scheduler",
        ),
        (tx_pb2.CommitVerdict(task_id="task-0", attempt=1, digest=bytes(32)), "not_a_validator"),
        (tx_pb2.RevealVerdict(salt=bytes(32), verdict=b""), "not_a_validator"),
        (
            tx_pb2.RequestModel(version="digits@1", node_id=address("north-1"), input_sha256=bytes(32), price_utlk=1),
            "unknown_model",
        ),
        (tx_pb2.CompleteRequest(request_id="req-0", output_sha256=bytes(32)), "unknown_request"),
    ],
)
def test_user_is_refused(chain: LedgerChain, message: Any, code: str) -> None:
    refused(chain, "alice", message, code)


def test_every_rule_is_reachable_by_a_transaction() -> None:
    names = {field.message_type.name for field in tx_pb2.TxBody.DESCRIPTOR.oneofs_by_name["message"].fields}
    assert names == {message.__name__ for message in RULES}


def test_node_registers_updates_and_keeps_its_organization(chain: LedgerChain) -> None:
    refused(chain, "north-1", registration("north-1", stake_utlk=10 * TLK - 1), "stake_too_small")
    refused(chain, "north-1", registration("north-1", stake_utlk=101 * TLK), "insufficient_funds")
    chain.register("north-1")
    changed = registration("north-1", price_utlk_per_gflop=7, stake_utlk=0)
    chain.send("north-1", changed)
    node = chain.state.nodes[address("north-1")]
    assert (node.price_utlk_per_gflop, node.stake_utlk) == (7, NODE_STAKE_UTLK)
    changed.outbound_only = True
    chain.send("north-1", changed)
    assert chain.state.nodes[address("north-1")].outbound_only
    changed.organization = "east"
    refused(chain, "north-1", changed, "organization_fixed")
    thief = registration("north-2")
    thief.name = "north-1"
    refused(chain, "north-2", thief, "name_taken")


def test_unlisted_node_needs_the_owners_endorsement(chain: LedgerChain) -> None:
    chain.send("alice", tx_pb2.Transfer(to=address("north-9"), amount_utlk=50 * TLK))
    refused(chain, "north-9", registration("north-9"), "not_endorsed")
    signed = endorsement_bytes(CHAIN_ID, address("north-9"))
    refused(chain, "north-9", registration("north-9", endorsement=key_of("east").sign(signed)), "not_endorsed")
    chain.send("north-9", registration("north-9", endorsement=key_of("north").sign(signed)))
    assert chain.state.nodes[address("north-9")].organization == "north"


def test_stake_returns_after_the_unbonding_period(chain: LedgerChain) -> None:
    chain.register("north-1")
    refused(chain, "north-1", tx_pb2.Unbond(subject=address("north-1"), amount_utlk=15 * TLK), "stake_too_small")
    refused(chain, "north-1", tx_pb2.Unbond(subject=address("north-1"), amount_utlk=21 * TLK), "stake_too_small")
    refused(chain, "north", tx_pb2.Unbond(subject=address("north-1"), amount_utlk=20 * TLK), "not_your_stake")
    chain.send("north-1", tx_pb2.Unbond(subject=address("north-1"), amount_utlk=20 * TLK))
    held = chain.balance("north-1")
    assert chain.state.supply.unbonding_utlk == 20 * TLK
    chain.skip(chain.state.params.unbonding_blocks - 1)
    assert chain.balance("north-1") == held
    chain.skip(1)
    assert chain.balance("north-1") == held + 20 * TLK
    assert chain.state.supply.unbonding_utlk == 0


def test_organizations_stake_becomes_power_at_the_next_epoch(chain: LedgerChain) -> None:
    chain.send("north", tx_pb2.Bond(subject="north", amount_utlk=100 * TLK))
    assert chain.state.organizations["north"].power == 1_000 * TLK
    while chain.height < chain.state.params.epoch_blocks:
        chain.block()
    [update] = chain.responses[-1].validator_updates
    assert (update.public_key, update.power) == (key_of("north-consensus").public.raw, 1_100 * TLK)


def test_last_stake_stays_and_parts_on_their_way_are_bounded(chain: LedgerChain) -> None:
    for name in ("north", "east", "south"):
        chain.send(name, tx_pb2.Unbond(subject=name, amount_utlk=1_000 * TLK))
    refused(chain, "west", tx_pb2.Unbond(subject="west", amount_utlk=1_000 * TLK), "last_stake")
    for _ in range(8):
        chain.send("west", tx_pb2.Unbond(subject="west", amount_utlk=1))
    refused(chain, "west", tx_pb2.Unbond(subject="west", amount_utlk=1), "too_many_unbondings")


Change = Callable[[tx_pb2.PlaceTask], None]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: setattr(m, "attempt", 2), "wrong_attempt"),
        (lambda m: m.shards.pop(), "wrong_gang"),
        (lambda m: setattr(m.shards[0], "rank", 1), "wrong_gang"),
        (lambda m: setattr(m.shards[0], "samples", 49), "wrong_gang"),
        (lambda m: setattr(m.shards[0], "node_id", m.shards[1].node_id), "wrong_gang"),
        (lambda m: setattr(m.shards[0], "node_id", address("west-2")), "unknown_node"),
        (lambda m: setattr(m.shards[0], "price_utlk_per_gflop", 999_999), "price_out_of_range"),
        (lambda m: setattr(m.shards[0], "price_utlk_per_gflop", 2_000_001), "price_out_of_range"),
    ],
)
def test_placement_is_refused(chain: LedgerChain, change: Change, code: str) -> None:
    chain.register(*GANG)
    message = chain.placement(chain.create(), *GANG)
    change(message)
    refused(chain, "north-scheduler", message, code)


def test_placement_needs_memory_and_stake_for_all_a_node_works_on(chain: LedgerChain) -> None:
    chain.register(*GANG)
    large = chain.create(memory_bytes=1 << 31)
    refused(chain, "north-scheduler", chain.placement(large, *GANG), "node_too_small")
    # 10 steps of 50 samples at 20 MFLOP and 1 TLK/GFLOP pay 10 TLK: with p = 0.3 and half slashed, 46.7 TLK at stake.
    costly = chain.create(flops_per_sample=20_000_000, escrow_utlk=200 * TLK)
    refused(chain, "north-scheduler", chain.placement(costly, *GANG), "stake_too_small")
    for name in GANG:
        chain.send(name, tx_pb2.Bond(subject=address(name), amount_utlk=27 * TLK))
    chain.place(costly, *GANG)
    # What stands for one task does not stand for a second one.
    second = chain.create(escrow_utlk=50 * TLK)
    refused(chain, "north-scheduler", chain.placement(second, *GANG), "stake_too_small")


def test_running_task_is_placed_anew_only_when_it_stalls(running: tuple[LedgerChain, str]) -> None:
    chain, task_id = running
    chain.send("north-1", chain.commitment(task_id, 0))
    refused(chain, "east-scheduler", chain.placement(task_id, "north-1", "south-1"), "still_running")
    chain.skip(chain.state.params.stall_blocks)
    chain.place(task_id, "north-1", "south-1", scheduler="east-scheduler")
    assert chain.task(task_id).attempt == 2
    assert chain.segment(task_id, 1, 0).phase is SegmentPhase.DISCARDED
    refused(chain, "east-1", tx_pb2.CommitSegment(**_fields(chain, task_id, rank=1)), "not_your_task")


def test_lost_node_is_reported_by_half_of_the_gang(running: tuple[LedgerChain, str]) -> None:
    chain, task_id = running
    lost = tx_pb2.FailTask(task_id=task_id, attempt=1, kind="node_lost", message="rank 1 is silent")
    refused(chain, "south-1", lost, "not_your_task")
    chain.send("north-1", lost)
    assert chain.task(task_id).phase is TaskPhase.PENDING
    chain.place(task_id, "north-1", "south-1")
    assert chain.task(task_id).attempt == 2


def test_task_that_loses_nodes_before_its_first_segment_fails_in_the_end(running: tuple[LedgerChain, str]) -> None:
    chain, task_id = running
    for attempt in (1, 2, 3):
        if attempt > 1:
            chain.place(task_id, *GANG)
        raised = tx_pb2.FailTask(task_id=task_id, attempt=attempt, kind="model_raised", message="KeyError: 'x'")
        chain.send("east-1", raised)
        chain.send("north-1", tx_pb2.FailTask(task_id=task_id, attempt=attempt, kind="node_lost", message="rank 1"))
    task = chain.task(task_id)
    assert (task.phase, task.failure_kind, task.escrow_utlk) == (TaskPhase.FAILED, "model_raised", 0)
    assert "KeyError" in task.failure


def test_id_that_is_taken_is_refused(chain: LedgerChain) -> None:
    data = chain.signed("alice", tx_pb2.CreateTask(spec=task_spec(), escrow_utlk=50 * TLK))
    chain.state.tasks.put(born_id("task", hashlib.sha256(data).digest()), Task(phase=TaskPhase.FAILED))
    assert chain.block(data).tx_results[0].error_code == "id_taken"


def _fields(chain: LedgerChain, task_id: str, rank: int, **changes: object) -> dict[str, Any]:
    message = chain.commitment(task_id, rank, **changes)
    return {field.name: value for field, value in message.ListFields()}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"attempt": 2}, "wrong_attempt"),
        ({"attempt": 0}, "wrong_attempt"),
        ({"segment": 1}, "wrong_segment"),
        ({"rank": 1}, "not_your_task"),
        ({"samples": 499}, "wrong_work"),
        ({"flops": 1}, "wrong_work"),
        ({"root": b"short"}, "bad_field"),
        ({"params_sha256": "no hash"}, "bad_field"),
        ({"energy_mj": 1 << 60}, "bad_field"),
    ],
)
def test_commitment_is_refused(running: tuple[LedgerChain, str], changes: dict[str, object], code: str) -> None:
    chain, task_id = running
    message = chain.commitment(task_id, 0, **changes)
    if code == "bad_field":
        assert chain.block(chain.signed("north-1", message)).tx_results[0].error_code == code
    else:
        refused(chain, "north-1", message, code)


def test_commitment_counts_once(running: tuple[LedgerChain, str]) -> None:
    chain, task_id = running
    chain.send("north-1", chain.commitment(task_id, 0))
    refused(chain, "north-1", chain.commitment(task_id, 0), "already_committed")


def _sealed(chain: LedgerChain, task_id: str, salt: bytes = bytes(32)) -> tuple[tx_pb2.CommitVerdict, bytes]:
    raw = verdict_of(chain.segment(task_id, 1, 0)).SerializeToString()
    digest = hashlib.sha256(salt + raw).digest()
    return tx_pb2.CommitVerdict(task_id=task_id, attempt=1, segment=0, digest=digest), raw


def test_verdict_is_committed_before_it_is_revealed(audited: tuple[LedgerChain, str]) -> None:
    chain, task_id = audited
    commit, raw = _sealed(chain, task_id)
    reveal = tx_pb2.RevealVerdict(salt=bytes(32), verdict=raw)
    refused(chain, "north-validator", reveal, "not_committed")
    chain.send("north-validator", commit)
    refused(chain, "north-validator", commit, "already_committed")
    refused(chain, "north-validator", reveal, "reveal_too_early")
    chain.send("east-validator", commit)
    refused(chain, "north-validator", reveal, "reveal_too_early")
    chain.send("south-validator", commit)
    refused(chain, "north-validator", tx_pb2.RevealVerdict(salt=bytes(31) + b"x", verdict=raw), "digest_mismatch")
    chain.send("north-validator", reveal)
    refused(chain, "north-validator", reveal, "already_revealed")


def test_verdict_without_a_finding_for_each_rank_is_refused(audited: tuple[LedgerChain, str]) -> None:
    chain, task_id = audited
    verdict = verdict_of(chain.segment(task_id, 1, 0))
    verdict.findings.pop()
    raw = verdict.SerializeToString()
    digest = hashlib.sha256(bytes(32) + raw).digest()
    commit = tx_pb2.CommitVerdict(task_id=task_id, attempt=1, segment=0, digest=digest)
    for name in ("north", "east", "south"):
        chain.send(f"{name}-validator", commit)
    refused(chain, "north-validator", tx_pb2.RevealVerdict(salt=bytes(32), verdict=raw), "bad_verdict")


def test_verdicts_are_only_taken_on_segments_under_audit(running: tuple[LedgerChain, str]) -> None:
    chain, task_id = running
    commit = tx_pb2.CommitVerdict(task_id=task_id, attempt=1, segment=0, digest=bytes(32))
    refused(chain, "north-validator", commit, "not_audited")
    refused(
        chain,
        "north-validator",
        tx_pb2.CommitVerdict(task_id=task_id, attempt=9, segment=0, digest=bytes(32)),
        "unknown_segment",
    )


def test_copied_verdict_is_counted_but_not_paid(audited: tuple[LedgerChain, str]) -> None:
    chain, task_id = audited
    commit, raw = _sealed(chain, task_id)
    for name in ("north", "east", "south"):
        chain.send(f"{name}-validator", commit)
    reveal = tx_pb2.RevealVerdict(salt=bytes(32), verdict=raw)
    chain.send("north-validator", reveal)
    copied = hashlib.sha256(b"c" * 32 + raw).digest()
    chain.send("west-validator", tx_pb2.CommitVerdict(task_id=task_id, attempt=1, segment=0, digest=copied))
    for name in ("east", "south"):
        chain.send(f"{name}-validator", reveal)
    chain.send("west-validator", tx_pb2.RevealVerdict(salt=b"c" * 32, verdict=raw))
    assert chain.segment(task_id, 1, 0).phase is SegmentPhase.ACCEPTED
    paid = {p.destination for p in chain.state.payments.all() if p.kind == "validation"}
    assert paid == {address(f"{name}-validator") for name in ("north", "east", "south")}


def test_only_the_owner_cancels_and_only_once(chain: LedgerChain) -> None:
    before = chain.balance("alice")
    task_id = chain.create()
    refused(chain, "bob", tx_pb2.CancelTask(task_id=task_id), "not_your_task")
    chain.send("bob", tx_pb2.FundTask(task_id=task_id, amount_utlk=TLK))
    chain.send("alice", tx_pb2.CancelTask(task_id=task_id))
    assert chain.balance("alice") == before + TLK - 2_000
    refused(chain, "alice", tx_pb2.CancelTask(task_id=task_id), "task_finished")
    refused(chain, "alice", tx_pb2.FundTask(task_id=task_id, amount_utlk=1), "task_finished")


def test_model_name_belongs_to_its_first_user(chain: LedgerChain) -> None:
    chain.create("alice")
    refused(chain, "bob", tx_pb2.CreateTask(spec=task_spec(), escrow_utlk=50 * TLK), "not_your_model")


def test_failure_needs_more_than_half_of_the_gang(running: tuple[LedgerChain, str]) -> None:
    chain, task_id = running
    report = tx_pb2.FailTask(task_id=task_id, attempt=1, kind="loss_nan", message="the loss became NaN at step 3")
    refused(chain, "alice", report, "not_your_task")
    refused(chain, "north-1", tx_pb2.FailTask(task_id=task_id, attempt=2, kind="loss_nan"), "wrong_attempt")
    chain.send("north-1", report)
    refused(chain, "north-1", report, "already_reported")
    assert chain.task(task_id).phase is TaskPhase.RUNNING
    chain.send("east-1", report)
    task = chain.task(task_id)
    assert (task.phase, task.failure_kind, task.escrow_utlk) == (TaskPhase.FAILED, "loss_nan", 0)
    assert task.failure == "the loss became NaN at step 3"


def test_waiting_task_fails_when_most_schedulers_say_so(chain: LedgerChain) -> None:
    task_id = chain.create()
    report = tx_pb2.FailTask(task_id=task_id, attempt=0, kind="data_missing", message="no such blob")
    for name in ("north", "east"):
        chain.send(f"{name}-scheduler", report)
    assert chain.task(task_id).phase is TaskPhase.PENDING
    chain.send("south-scheduler", report)
    assert chain.task(task_id).phase is TaskPhase.FAILED
