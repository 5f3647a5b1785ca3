"""Where tokens go when work is decided: pay for accepted segments, and the division of a slash."""

from __future__ import annotations

from msgspec.structs import replace

from talkoo_core.amounts import MAX_AMOUNT_UTLK, share_ppm, split_by_weight
from talkoo_ledger import economy
from talkoo_ledger.context import Context
from talkoo_ledger.models import register_model
from talkoo_ledger.placement import segment_price
from talkoo_ledger.records import Commitment, Node, Segment, SegmentPhase, Task, TaskPhase
from talkoo_ledger.segments import put_segment, standing_segment
from talkoo_ledger.stake import take_slash
from talkoo_ledger.state import FINAL_PHASES
from talkoo_ledger.tasks import segment_count, settle_escrow
from talkoo_ledger.transfers import TREASURY, credit
from talkoo_ledger.verdicts import agreeing_validators


def accept_in_order(context: Context, task_id: str) -> None:
    """Accept and pay segments that passed, as long as all before them are accepted; finish the task after the last."""
    state = context.state
    task = state.tasks[task_id]
    while task.accepted_segments < task.next_segment:
        segment = standing_segment(state, task, task.accepted_segments)
        if segment.phase is not SegmentPhase.PASSED:
            break
        task = _accept(context, task, segment)
    if task.accepted_segments == segment_count(task.spec) and task.phase not in FINAL_PHASES:
        task = _complete(context, task)
    settle_escrow(context, task)


def slash_forgers(
    context: Context, task: Task, segment: Segment, discarded: list[Segment], forgers: tuple[str, ...]
) -> None:
    """Take from each forger; of that a part to the validators who found it, then the honest ranks' lost work, then the
    treasury. Honest ranks of the forged segment come first, those of later discarded segments after them.
    """
    claims = [
        (shard.node_id, each.segment, segment_price(task, shard, each.segment), commitment)
        for each in discarded
        for shard, commitment in zip(each.shards, each.commitments, strict=True)
        if shard.node_id not in forgers
    ]
    proof = verdict_proof(segment)
    for forger in forgers:
        pot = _jail(context, segment, forger)
        finders = agreeing_validators(context.state, segment)
        found = share_ppm(pot, context.params.finder_ppm) if finders else 0
        for address, part in zip(finders, split_by_weight(found, [1] * len(finders)), strict=True):
            _move(context, "finder", f"stake:{forger}", address, part, proof, task, segment.segment)
        pot -= found
        unpaid = []
        for node_id, number, claim, commitment in claims:
            part = min(pot, claim)
            pot -= part
            lost = f"commitment:{commitment.tx_hash.hex()}"
            _move(context, "restitution", f"stake:{forger}", node_id, part, lost, task, number)
            _earn(context, node_id, part)
            if part < claim:
                unpaid.append((node_id, number, claim - part, commitment))
        claims = unpaid
        _move(context, "slash", f"stake:{forger}", TREASURY, pot, proof, task, segment.segment)


def verdict_proof(segment: Segment) -> str:
    return f"verdict:{segment.task_id}/{segment.attempt}/{segment.segment}"


def _accept(context: Context, task: Task, segment: Segment) -> Task:
    price = 0
    for shard, commitment in zip(segment.shards, segment.commitments, strict=True):
        pay = segment_price(task, shard, segment.segment)
        price += pay
        proof = f"commitment:{commitment.tx_hash.hex()}"
        _move(context, "compute", f"escrow:{task.id}", shard.node_id, pay, proof, task, segment.segment)
        _earn(context, shard.node_id, pay)
        _count_work(context, commitment)
    validators = agreeing_validators(context.state, segment)
    fee = share_ppm(price, context.params.validation_ppm) if validators else 0
    for address, part in zip(validators, split_by_weight(fee, [1] * len(validators)), strict=True):
        proof = verdict_proof(segment)
        _move(context, "validation", f"escrow:{task.id}", address, part, proof, task, segment.segment)
    put_segment(context.state, replace(segment, phase=SegmentPhase.ACCEPTED))
    spent = price + fee
    assert spent <= task.escrow_utlk, "creation made sure that the escrow covers every segment"
    task = replace(
        task,
        escrow_utlk=task.escrow_utlk - spent,
        spent_utlk=task.spent_utlk + spent,
        accepted_segments=task.accepted_segments + 1,
    )
    context.state.tasks.put(task.id, task)
    context.emit("segment_accepted", task.id, attempt=segment.attempt, segment=segment.segment)
    return task


def _complete(context: Context, task: Task) -> Task:
    segments = [standing_segment(context.state, task, number) for number in range(task.accepted_segments)]
    contributors = tuple(sorted({shard.node_id for segment in segments for shard in segment.shards}))
    last = segments[-1]
    version = register_model(context, task, last.commitments[0].segment.params_sha256, last.outcome, contributors)
    task = replace(task, phase=TaskPhase.COMPLETED, finished_height=context.height, model_version=version)
    context.state.tasks.put(task.id, task)
    context.emit("task_completed", task.id, model_version=version)
    return task


def _jail(context: Context, segment: Segment, forger: str) -> int:
    """Slash and jail one node. Returns what was taken, in utlk."""
    node, taken = take_slash(context, context.state.nodes[forger], context.params.slash_ppm)
    context.state.nodes.put(
        forger,
        replace(
            node,
            jailed=True,
            jailed_until_height=context.height + context.params.jail_blocks,
            slashed_utlk=node.slashed_utlk + taken,
            forged_segments=node.forged_segments + 1,
        ),
    )
    context.emit("slashed", forger, amount_utlk=taken, task=segment.task_id, segment=segment.segment)
    return taken


def _move(
    context: Context, kind: str, source: str, address: str, amount_utlk: int, proof: str, task: Task, segment: int
) -> None:
    credit(context.state, address, amount_utlk)
    context.record_payment(kind, source, address, amount_utlk, proof, task_id=task.id, segment=segment)


def _earn(context: Context, node_id: str, amount_utlk: int) -> None:
    node = context.state.nodes[node_id]
    earned = min(node.earned_utlk + amount_utlk, MAX_AMOUNT_UTLK)
    context.state.nodes.put(node_id, replace(node, earned_utlk=earned))


def _count_work(context: Context, commitment: Commitment) -> None:
    """Add an accepted commitment to the node's record: segments, operations, energy."""
    node: Node = context.state.nodes[commitment.node_id]
    gflop, rest = divmod(node.verified_rest_flop + commitment.segment.flops, economy.FLOP_PER_GFLOP)
    context.state.nodes.put(
        node.id,
        replace(
            node,
            verified_segments=node.verified_segments + 1,
            verified_gflop=node.verified_gflop + gflop,
            verified_rest_flop=rest,
            epoch_mflop=node.epoch_mflop + commitment.segment.flops // economy.FLOP_PER_MFLOP,
            energy_mj=node.energy_mj + commitment.segment.energy_mj,
        ),
    )
