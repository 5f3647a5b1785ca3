"""Whole tasks in pure code: funded, placed, trained, audited, paid, and what goes wrong on the way."""

from __future__ import annotations

import hashlib

import pytest
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_ledger.application import Application, replay
from talkoo_ledger.records import Payment, SegmentPhase, TaskPhase
from talkoo_ledger.transfers import TREASURY

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_sim.ledger_chain import NODE_STAKE_UTLK, LedgerChain, address, make_genesis, verdict_of

TLK = UTLK_PER_TLK
GANG = ("north-1", "east-1")


@pytest.fixture
def chain() -> LedgerChain:
    chain = LedgerChain(make_genesis(emission_per_epoch_utlk=0))
    chain.register(*GANG, "south-1", "west-1")
    return chain


def train(chain: LedgerChain, task_id: str, gang: tuple[str, ...] = GANG) -> None:
    """Commit every segment that is left and answer every audit honestly."""
    while chain.task(task_id).phase is TaskPhase.RUNNING:
        train_segment(chain, task_id, gang)


def train_segment(
    chain: LedgerChain, task_id: str, gang: tuple[str, ...] = GANG, forgers: tuple[int, ...] = ()
) -> None:
    task = chain.task(task_id)
    chain.commit_all(task_id, gang)
    chain.block()
    segment = chain.segment(task_id, task.attempt, task.next_segment)
    if segment.phase is SegmentPhase.AUDITED:
        chain.judge(verdict_of(segment, forgers=forgers, correct=340, total=360))


def payments(chain: LedgerChain, kind: str, name: str = "") -> list[Payment]:
    everything = chain.state.payments.all()
    return [p for p in everything if p.kind == kind and (not name or p.destination == address(name))]


def paid(chain: LedgerChain, kind: str, name: str = "") -> int:
    return sum(payment.amount_utlk for payment in payments(chain, kind, name))


def test_honest_task_is_paid_and_registers_its_model(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    train(chain, task_id)
    task = chain.task(task_id)
    assert task.phase is TaskPhase.COMPLETED
    assert (task.model_version, task.escrow_utlk) == ("digits@1", 0)
    assert [paid(chain, "compute", name) for name in GANG] == [3 * TLK, 3 * TLK]
    assert task.spent_utlk == paid(chain, "compute") + paid(chain, "validation")
    assert paid(chain, "refund", "alice") == 50 * TLK - task.spent_utlk
    model = chain.state.models["digits@000001"]
    assert (model.heldout_correct, model.heldout_total, model.task_id) == (340, 360, task_id)
    assert set(model.contributors) == {address(name) for name in GANG}
    node = chain.state.nodes[address("north-1")]
    assert (node.verified_segments, node.verified_gflop, node.energy_mj) == (3, 3, 15_000)
    assert replay(chain.genesis, chain.blocks).info() == chain.application.info()


def test_every_payment_names_a_proof_that_is_in_the_chain(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    train(chain, task_id)
    hashes = {hashlib.sha256(tx).hexdigest() for block in chain.blocks for tx in block.txs}
    for payment in chain.state.payments.all():
        kind, _, what = payment.proof.partition(":")
        if kind in ("commitment", "tx"):
            assert what in hashes
        elif kind == "verdict":
            named, attempt, number = what.split("/")
            assert chain.segment(named, int(attempt), int(number)).outcome is not None
        else:
            assert (kind, int(what)) == ("block", payment.height)
    assert [p.number for p in chain.state.payments.all()] == list(range(1, chain.state.chain.payments + 1))


def test_events_tell_the_story_in_order(chain: LedgerChain) -> None:
    start = len(chain.events())
    task_id = chain.create()
    chain.place(task_id, *GANG)
    train(chain, task_id)
    told = [event.type for event in chain.events()[start:] if event.subject == task_id]
    assert told[:4] == ["task_created", "task_placed", "segment_opened", "segment_committed"]
    assert told[-2:] == ["segment_accepted", "task_completed"]
    assert told.count("segment_accepted") == told.count("segment_opened") == 3
    assert told.count("audit_opened") == told.count("verdict") == 3


def test_forger_is_slashed_and_its_work_done_again(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    train_segment(chain, task_id)
    chain.commit_all(task_id, GANG)
    chain.block()
    forged = chain.segment(task_id, 1, 1)
    chain.commit_all(task_id, GANG)  # training goes on while the audit runs
    chain.judge(verdict_of(forged, forgers=(1,)))
    task, forger = chain.task(task_id), chain.state.nodes[address("east-1")]
    assert (task.phase, task.next_segment, task.discarded_segments) == (TaskPhase.PENDING, 1, 2)
    assert task.start_params_sha256 == chain.segment(task_id, 1, 0).commitments[0].segment.params_sha256
    assert task.banned_nodes == (address("east-1"),)
    assert forger.jailed
    assert (forger.stake_utlk, forger.slashed_utlk, forger.forged_segments) == (10 * TLK, 10 * TLK, 1)
    # 20 % to three finders, two lost segments of the honest rank at 1 TLK each, the rest to the treasury.
    assert paid(chain, "finder") == 2 * TLK
    assert len(payments(chain, "finder")) == 3
    assert [p.segment for p in payments(chain, "restitution", "north-1")] == [1, 2]
    assert paid(chain, "restitution", "north-1") == 2 * TLK
    assert chain.state.accounts[TREASURY].balance_utlk == 6 * TLK
    with pytest.raises(Exception, match="jailed"):
        chain.place(task_id, "north-1", "east-1")
    chain.place(task_id, "north-1", "south-1")
    train(chain, task_id, ("north-1", "south-1"))
    assert chain.task(task_id).phase is TaskPhase.COMPLETED
    assert paid(chain, "compute", "east-1") == 1 * TLK
    assert chain.task(task_id).accepted_segments == 3


def test_two_forgers_pay_together_for_what_the_honest_rank_lost(chain: LedgerChain) -> None:
    gang = ("north-1", "east-1", "south-1")
    task_id = chain.create(global_batch=300, flops_per_sample=1_000_000, min_nodes=3)
    chain.place(task_id, *gang)
    train_segment(chain, task_id, gang, forgers=(0, 2))
    slashes = {name: chain.state.nodes[address(name)].slashed_utlk for name in gang}
    assert slashes == {"north-1": 10 * TLK, "east-1": 0, "south-1": 10 * TLK}
    assert paid(chain, "restitution", "east-1") == 1 * TLK
    assert paid(chain, "finder") + paid(chain, "restitution") + paid(chain, "slash") == 20 * TLK
    assert chain.task(task_id).banned_nodes == tuple(sorted(address(name) for name in ("north-1", "south-1")))


def test_small_slash_pays_the_forged_segments_victims_first() -> None:
    chain = LedgerChain(make_genesis(emission_per_epoch_utlk=0, slash_ppm=200_000, finder_ppm=0))
    chain.register(*GANG)
    task_id = chain.create(audit_rate_ppm=1_000_000, flops_per_sample=6_000_000, escrow_utlk=100 * TLK)
    chain.place(task_id, *GANG)
    chain.commit_all(task_id, GANG)
    chain.block()
    chain.commit_all(task_id, GANG)
    chain.judge(verdict_of(chain.segment(task_id, 1, 0), forgers=(1,)))
    # The slash is 4 TLK; the honest rank lost 3 TLK in each of two segments.
    assert [(p.segment, p.amount_utlk) for p in payments(chain, "restitution")] == [(0, 3 * TLK), (1, 1 * TLK)]
    assert not payments(chain, "slash")


def test_only_the_newest_payments_stay_in_the_state(chain: LedgerChain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talkoo_ledger.context.PAYMENTS_KEPT", 5)
    chain.skip(1)
    newest = chain.state.chain.payments
    for _ in range(10):
        chain.send("alice", tx_pb2.Transfer(to=address("bob"), amount_utlk=1))
    assert chain.state.chain.payments == newest + 10
    entries = list(chain.application.snapshot())
    info = chain.application.info()
    assert f"{newest + 5:012d}" not in [key for module, key, _ in entries if module == "payments"]
    Application().load(entries, info.height, info.app_hash)


def test_jailed_node_returns_after_its_time_with_new_stake_but_not_to_that_task(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    train_segment(chain, task_id, forgers=(1,))
    chain.send("east-1", tx_pb2.Bond(subject=address("east-1"), amount_utlk=TLK))
    assert chain.state.nodes[address("east-1")].jailed
    chain.skip(chain.state.params.jail_blocks)
    chain.send("east-1", tx_pb2.Bond(subject=address("east-1"), amount_utlk=TLK))
    assert not chain.state.nodes[address("east-1")].jailed
    with pytest.raises(Exception, match="forged in this task"):
        chain.place(task_id, *GANG)


def test_stake_on_its_way_back_is_slashed_too(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    chain.send("east-1", tx_pb2.Unbond(subject=address("east-1"), amount_utlk=NODE_STAKE_UTLK))
    train_segment(chain, task_id, forgers=(1,))
    assert chain.state.nodes[address("east-1")].slashed_utlk == NODE_STAKE_UTLK // 2
    assert chain.state.supply.unbonding_utlk == NODE_STAKE_UTLK // 2


def test_lost_node_is_replaced_and_finished_segments_stand(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    train_segment(chain, task_id)
    chain.send("north-1", chain.commitment(task_id, 0))
    chain.send("north-1", tx_pb2.FailTask(task_id=task_id, attempt=1, kind="node_lost", message="rank 1 is silent"))
    chain.place(task_id, "north-1", "south-1", scheduler="south-scheduler")
    assert chain.segment(task_id, 2, 1).start_params_sha256 == chain.task(task_id).start_params_sha256 != ""
    train(chain, task_id, ("north-1", "south-1"))
    assert chain.task(task_id).phase is TaskPhase.COMPLETED
    assert paid(chain, "compute", "east-1") == 1 * TLK
    assert paid(chain, "compute", "south-1") == 2 * TLK


def test_validators_that_disagree_discard_without_a_slash(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    chain.commit_all(task_id, GANG)
    chain.block()
    segment = chain.segment(task_id, 1, 0)
    half = chain.state.params.audit_deadline_blocks // 2
    honest, forged = verdict_of(segment), verdict_of(segment, forgers=(0,))
    for verdict, names in ((honest, ("north", "east")), (forged, ("south", "west"))):
        raw = verdict.SerializeToString()
        digest = hashlib.sha256(bytes(32) + raw).digest()
        for name in names:
            commit = tx_pb2.CommitVerdict(task_id=task_id, attempt=1, segment=0, digest=digest)
            chain.send(f"{name}-validator", commit)
        if len(names) == 2 and names[0] == "north":
            chain.skip(half)
        for name in names:
            chain.send(f"{name}-validator", tx_pb2.RevealVerdict(salt=bytes(32), verdict=raw))
    chain.skip(chain.state.params.audit_deadline_blocks * (chain.state.params.max_audit_extensions + 1))
    assert chain.segment(task_id, 1, 0).phase is SegmentPhase.DISCARDED
    assert chain.task(task_id).phase is TaskPhase.PENDING
    assert not chain.events("slashed")
    assert len(chain.events("audit_opened")) == 1 + chain.state.params.max_audit_extensions


def test_one_silent_validator_holds_nothing_up_longer_than_the_grace(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    chain.commit_all(task_id, GANG)
    chain.block()
    silent = tx_pb2.CommitVerdict(task_id=task_id, attempt=1, segment=0, digest=bytes(32))
    chain.send("west-validator", silent)
    chain.judge(verdict_of(chain.segment(task_id, 1, 0)))
    assert chain.segment(task_id, 1, 0).phase is SegmentPhase.AUDITED
    chain.skip(chain.state.params.reveal_grace_blocks)
    assert chain.segment(task_id, 1, 0).phase is SegmentPhase.ACCEPTED
    assert not payments(chain, "validation", "west-validator")


def test_unavailable_blobs_discard_without_a_slash(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    chain.commit_all(task_id, GANG)
    chain.block()
    chain.judge(verdict_of(chain.segment(task_id, 1, 0), available=False))
    assert chain.task(task_id).phase is TaskPhase.PENDING
    assert not chain.events("slashed")
    chain.place(task_id, *GANG)
    train(chain, task_id)
    assert chain.task(task_id).phase is TaskPhase.COMPLETED


def test_ranks_that_disagree_are_always_opened(chain: LedgerChain) -> None:
    task_id = chain.create(steps=100, escrow_utlk=100 * TLK)
    chain.place(task_id, *GANG)
    for _ in range(3):
        train_segment(chain, task_id)
    number = chain.task(task_id).next_segment
    chain.block(
        chain.signed("north-1", chain.commitment(task_id, 0)),
        chain.signed("east-1", chain.commitment(task_id, 1, params_sha256="0" * 64)),
    )
    chain.block()
    segment = chain.segment(task_id, 1, number)
    assert (segment.phase, segment.draw_rate_ppm) == (SegmentPhase.AUDITED, 1_000_000)


def test_segment_that_is_not_drawn_is_paid_without_validators(chain: LedgerChain) -> None:
    task_id = chain.create(steps=1_000, escrow_utlk=500 * TLK, audit_rate_ppm=0)
    chain.place(task_id, *GANG)
    for _ in range(20):
        train_segment(chain, task_id)
    skipped = chain.events("audit_skipped")
    assert skipped
    assert dict(skipped[0].attributes)["rate_ppm"] == "100000"
    assert chain.task(task_id).accepted_segments == 20
    assert len(payments(chain, "validation")) == 3 * len(chain.events("audit_opened"))


def test_loss_that_turns_nan_ends_the_task_and_work_done_stays_paid(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    chain.commit_all(task_id, GANG)
    for name in GANG:
        chain.send(name, tx_pb2.FailTask(task_id=task_id, attempt=1, kind="loss_nan", message="step 12"))
    task = chain.task(task_id)
    assert task.phase is TaskPhase.FAILED
    assert task.escrow_utlk > 0  # held for the segment whose audit still runs
    chain.judge(verdict_of(chain.segment(task_id, 1, 0)))
    assert chain.task(task_id).escrow_utlk == 0
    assert paid(chain, "compute", "north-1") == 1 * TLK


def test_cancelled_task_pays_what_was_committed_and_returns_the_rest(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    chain.commit_all(task_id, GANG)
    chain.send("north-1", chain.commitment(task_id, 0))
    chain.send("alice", tx_pb2.CancelTask(task_id=task_id))
    assert chain.segment(task_id, 1, 1).phase is SegmentPhase.DISCARDED
    chain.judge(verdict_of(chain.segment(task_id, 1, 0)))
    task = chain.task(task_id)
    assert (task.phase, task.escrow_utlk, task.spent_utlk) == (TaskPhase.CANCELLED, 0, 2 * TLK + 200_000)


def test_next_version_continues_from_its_parent(chain: LedgerChain) -> None:
    first = chain.create()
    chain.place(first, *GANG)
    train(chain, first)
    second = chain.create(parent_version="digits@1")
    assert chain.task(second).start_params_sha256 == chain.state.models["digits@000001"].params_sha256
    chain.place(second, *GANG)
    train(chain, second)
    assert chain.state.models["digits@000002"].parent_version == "digits@1"


def ask(chain: LedgerChain, price_utlk: int = 60_000, node: str = "south-1") -> str:
    message = tx_pb2.RequestModel(
        version="digits@1", node_id=address(node), input_sha256=bytes(32), price_utlk=price_utlk
    )
    return chain.send("bob", message).born_id


def test_request_is_paid_when_answered_and_refunded_when_not(chain: LedgerChain) -> None:
    task_id = chain.create()
    chain.place(task_id, *GANG)
    train(chain, task_id)
    with pytest.raises(Exception, match="costs"):
        ask(chain, price_utlk=59_999)
    request_id = ask(chain)
    answer = tx_pb2.CompleteRequest(request_id=request_id, output_sha256=b"o" * 32, energy_mj=7)
    with pytest.raises(Exception, match="another node"):
        chain.send("west-1", answer)
    chain.send("south-1", answer)
    assert paid(chain, "request_node", "south-1") == 50_000
    assert paid(chain, "request_owner", "alice") == 10_000
    assert chain.state.nodes[address("south-1")].energy_mj == 7
    with pytest.raises(Exception, match="completed already"):
        chain.send("south-1", answer)
    late = ask(chain)
    held = chain.balance("bob")
    chain.skip(chain.state.params.request_deadline_blocks + 1)
    assert chain.balance("bob") == held + 60_000
    assert chain.state.requests[late].state == "refunded"


def test_epoch_pays_for_verified_work_and_raises_power_for_it() -> None:
    chain = LedgerChain(make_genesis())
    chain.register(*GANG)
    task_id = chain.create()
    chain.place(task_id, *GANG)
    train(chain, task_id)
    chain.skip(chain.state.params.epoch_blocks)
    emitted = chain.state.supply.emitted_utlk
    assert emitted == 4 * TLK * chain.state.chain.epoch == paid(chain, "emission")
    assert paid(chain, "emission", "north-1") == paid(chain, "emission", "east-1") > 0
    north, south = chain.state.organizations["north"], chain.state.organizations["south"]
    assert north.credit_gflop > 0
    assert south.power == south.stake_utlk < north.power < north.stake_utlk * 3 // 2
    updated = {update.public_key for each in chain.responses for update in each.validator_updates}
    assert north.validator_key in updated
    assert south.validator_key not in updated


def test_fees_of_a_block_go_to_its_proposer(chain: LedgerChain) -> None:
    response = chain.block(chain.signed("alice", tx_pb2.Transfer(to=address("bob"), amount_utlk=1)))
    [fee] = [event for event in response.events if dict(event.attributes).get("kind") == "proposer_fee"]
    assert dict(fee.attributes)["amount_utlk"] == "1000"
    owners = {organization.owner for organization in chain.state.organizations.all()}
    assert fee.subject in owners
