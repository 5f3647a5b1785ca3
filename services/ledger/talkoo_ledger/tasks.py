"""The life of a task: funding, placement, reports of failure, the end and what is left of the escrow."""

from __future__ import annotations

import re

from msgspec.structs import replace

from talkoo_core.amounts import format_tlk
from talkoo_core.errors import Conflict, InsufficientFunds, NotFound, PermissionDenied
from talkoo_core.ids import born_id
from talkoo_ledger import economy
from talkoo_ledger.bounds import NODE_LOST
from talkoo_ledger.context import Context
from talkoo_ledger.messages import CancelTask, CreateTask, FailTask, FundTask, TaskSpec
from talkoo_ledger.models import head_of, model_by_version
from talkoo_ledger.records import FailureReport, SegmentPhase, Task, TaskPhase
from talkoo_ledger.state import FINAL_PHASES, State, segment_key
from talkoo_ledger.transfers import credit, debit

FRUITLESS_ATTEMPTS_MAX = 3
"""Attempts in a row that lost a node before all ranks committed one segment."""

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def segment_count(spec: TaskSpec) -> int:
    return -(-spec.steps // spec.steps_per_segment)


def steps_of_segment(spec: TaskSpec, segment: int) -> int:
    """Steps in a segment; the last one may be shorter."""
    return min(spec.steps_per_segment, spec.steps - segment * spec.steps_per_segment)


def create_task(context: Context, sender: str, message: CreateTask) -> None:
    state, spec = context.state, message.spec
    flops = spec.steps * spec.global_batch * spec.flops_per_sample
    needed = economy.required_escrow(flops, spec.price_utlk_per_gflop, context.params.validation_ppm)
    if message.escrow_utlk < needed:
        raise InsufficientFunds(
            f"the escrow of {format_tlk(message.escrow_utlk)} does not cover the task: its work at the price it offers "
            f"and its validation take up to {format_tlk(needed)}; raise the budget or lower the price",
            code="escrow_too_small",
        )
    parent = model_by_version(state, spec.parent_version) if spec.parent_version else None
    _check_model_name(state, sender, spec.model_name)
    debit(state, sender, message.escrow_utlk, "the task's escrow")
    task_id = born_id("task", context.tx_hash)
    task = Task(
        id=task_id,
        owner=sender,
        spec=spec,
        phase=TaskPhase.PENDING,
        escrow_utlk=message.escrow_utlk,
        created_height=context.height,
        last_progress_height=context.height,
        start_params_sha256=parent.params_sha256 if parent else "",
        trace=context.memo if _TRACEPARENT.fullmatch(context.memo) else "",
    )
    if state.tasks.get(task_id) is not None:
        raise Conflict(f"{task_id} exists: two transactions begin with the same hash; send it again", code="id_taken")
    state.tasks.put(task_id, task)
    context.born_id = task_id
    _record_escrow(context, task, sender, message.escrow_utlk)
    context.emit("task_created", task_id, name=spec.name, owner=sender, escrow_utlk=message.escrow_utlk)


def fund_task(context: Context, sender: str, message: FundTask) -> None:
    task = live_task(context.state, message.task_id)
    debit(context.state, sender, message.amount_utlk, "the task's escrow")
    context.state.tasks.put(task.id, replace(task, escrow_utlk=task.escrow_utlk + message.amount_utlk))
    _record_escrow(context, task, sender, message.amount_utlk)


def cancel_task(context: Context, sender: str, message: CancelTask) -> None:
    task = live_task(context.state, message.task_id)
    if task.owner != sender:
        raise PermissionDenied(f"{task.id} belongs to {task.owner}; only the owner cancels it", code="not_your_task")
    end_task(context, replace(task, phase=TaskPhase.CANCELLED))
    context.emit("task_cancelled", task.id)


def fail_task(context: Context, sender: str, message: FailTask) -> None:
    """Count one report. More than half of the gang (or, for schedulers, of the organizations) must say the same kind.

    `node_lost` frees the placement instead, and half of the gang is enough: the lost node cannot say anything.
    """
    state = context.state
    task = live_task(state, message.task_id)
    if message.attempt != task.attempt:
        raise Conflict(f"{task.id} is at attempt {task.attempt}, not {message.attempt}", code="wrong_attempt")
    group, reporter = _reporting_group(state, task, sender)
    if any(report.reporter == reporter for report in task.failure_reports):
        raise Conflict(f"{reporter} has reported on this attempt already", code="already_reported")
    reports = (*task.failure_reports, FailureReport(reporter, message.kind, message.message))
    task = replace(task, failure_reports=reports)
    state.tasks.put(task.id, task)
    votes = sum(report.reporter in group and report.kind == message.kind for report in reports)
    if message.kind == NODE_LOST:
        if 2 * votes >= len(group) and task.phase is TaskPhase.RUNNING:
            _lose_node(context, task)
    elif 2 * votes > len(group):
        _end_failed(context, task, message.kind, message.message)


def _lose_node(context: Context, task: Task) -> None:
    """Free the placement. A task that loses a node again and again before its first segment has the fault in itself."""
    fruitless = task.fruitless_attempts + 1
    if fruitless < FRUITLESS_ATTEMPTS_MAX:
        free_placement(context, replace(task, fruitless_attempts=fruitless), "a node of the gang was lost")
        return
    reports = sorted(task.failure_reports, key=lambda report: report.kind == NODE_LOST)
    cause = reports[0]
    times = f"{fruitless} attempts in a row lost a node before a segment was done"
    _end_failed(context, task, cause.kind, f"{times}; one of the last reports: {cause.message}")


def _end_failed(context: Context, task: Task, kind: str, message: str) -> None:
    end_task(context, replace(task, phase=TaskPhase.FAILED, failure_kind=kind, failure=message))
    context.emit("task_failed", task.id, kind=kind, message=message)


def end_task(context: Context, task: Task) -> None:
    """Put a task into a final phase. Segments that all ranks committed are still audited and paid (`settle_escrow`)."""
    _discard_open_segment(context, task, "the task ended")
    context.state.tasks.put(task.id, replace(task, finished_height=context.height, beacon=b""))
    settle_escrow(context, context.state.tasks[task.id])


def settle_escrow(context: Context, task: Task) -> None:
    """Return what is left to the owner once the task is final and nothing it owes is undecided."""
    if task.phase not in FINAL_PHASES or task.accepted_segments < task.next_segment or not task.escrow_utlk:
        return
    credit(context.state, task.owner, task.escrow_utlk)
    proof = f"block:{context.height}"
    context.record_payment("refund", f"escrow:{task.id}", task.owner, task.escrow_utlk, proof, task_id=task.id)
    context.state.tasks.put(task.id, replace(task, escrow_utlk=0))


def free_placement(context: Context, task: Task, reason: str) -> None:
    """The gang is released; the task waits for its next attempt with what was committed."""
    _discard_open_segment(context, task, reason)
    context.state.tasks.put(
        task.id,
        replace(task, phase=TaskPhase.PENDING, shards=(), beacon=b"", failure_reports=(), placement_reason=reason),
    )


def live_task(state: State, task_id: str) -> Task:
    """A task that is not final. Raises NotFound (`unknown_task`), Conflict (`task_finished`)."""
    task = state.tasks.get(task_id)
    if task is None:
        raise NotFound(f"there is no task {task_id!r}", code="unknown_task")
    if task.phase in FINAL_PHASES:
        raise Conflict(f"{task_id} is {task.phase.name.lower()} already", code="task_finished")
    return task


def _discard_open_segment(context: Context, task: Task, reason: str) -> None:
    """A segment that some ranks have not committed cannot be finished by others under the same attempt."""
    key = segment_key(task.id, task.attempt, task.next_segment)
    segment = context.state.segments.get(key)
    if segment is None or segment.phase is not SegmentPhase.OPEN:
        return
    context.state.segments.put(key, replace(segment, phase=SegmentPhase.DISCARDED))
    context.emit("segment_discarded", task.id, attempt=segment.attempt, segment=segment.segment, reason=reason)


def _reporting_group(state: State, task: Task, sender: str) -> tuple[tuple[str, ...], str]:
    """Who votes together with the sender, and the sender's name there."""
    gang = tuple(shard.node_id for shard in task.shards)
    if sender in gang:
        return gang, sender
    organizations = [each for each in state.organizations.all() if not each.left_height]
    for organization in organizations:
        if organization.scheduler == sender:
            return tuple(each.name for each in organizations), organization.name
    raise PermissionDenied(
        f"only nodes of the present placement and schedulers report on {task.id}", code="not_your_task"
    )


def _check_model_name(state: State, owner: str, model: str) -> None:
    """A model's name belongs to whoever used it first, from the task on."""
    head = head_of(state, model)
    taken = head is not None and head.owner != owner
    if taken or any(task.spec.model_name == model and task.owner != owner for task in state.tasks.live()):
        raise PermissionDenied(
            f"the model name {model!r} belongs to somebody else; choose another", code="not_your_model"
        )


def _record_escrow(context: Context, task: Task, sender: str, amount_utlk: int) -> None:
    proof = f"tx:{context.tx_hash.hex()}"
    context.record_payment("escrow", sender, f"escrow:{task.id}", amount_utlk, proof, task_id=task.id)
