"""Whole tasks in pure code: funded, placed, trained, audited, paid, and what goes wrong on the way."""

from __future__ import annotations

from talkoo_ledger.application import replay
from talkoo_ledger.records import SegmentPhase, TaskPhase

from talkoo_sim.ledger_chain import LedgerChain, address, make_genesis, verdict_of

GANG = ("north-1", "east-1")


def train(chain: LedgerChain, task_id: str, gang: tuple[str, ...] = GANG, forgers: tuple[int, ...] = ()) -> None:
    """Commit every segment that is left and answer every audit."""
    while chain.task(task_id).phase is TaskPhase.RUNNING:
        task = chain.task(task_id)
        chain.commit_all(task_id, gang)
        chain.block()
        segment = chain.segment(task_id, task.attempt, task.next_segment)
        if segment.phase is SegmentPhase.AUDITED:
            chain.judge(verdict_of(segment, forgers=forgers, correct=340, total=360))


def test_honest_task_is_paid_and_registers_its_model() -> None:
    chain = LedgerChain(make_genesis())
    chain.register(*GANG)
    task_id = chain.create()
    chain.place(task_id, *GANG)
    before = {name: chain.balance(name) for name in GANG}
    train(chain, task_id)
    task = chain.task(task_id)
    assert task.phase is TaskPhase.COMPLETED
    assert (task.model_version, task.escrow_utlk) == ("digits@1", 0)
    assert task.spent_utlk == 6_000_000 + 600_000
    for name in GANG:
        fees = 3 * 1_000
        compute = [p for p in chain.state.payments.all() if p.kind == "compute" and p.destination == address(name)]
        assert sum(p.amount_utlk for p in compute) == 3_000_000
        emitted = sum(
            p.amount_utlk for p in chain.state.payments.all() if p.kind == "emission" and p.destination == address(name)
        )
        assert chain.balance(name) == before[name] - fees + 3_000_000 + emitted
    model = chain.state.models["digits@000001"]
    assert (model.heldout_correct, model.heldout_total, model.task_id) == (340, 360, task_id)
    again = replay(chain.genesis, chain.blocks)
    assert again.info() == chain.application.info()
