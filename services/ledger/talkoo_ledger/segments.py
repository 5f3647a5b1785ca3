"""Segments: commitments of all ranks, which segment stands under a number, and what happens when one is discarded."""

from __future__ import annotations

from msgspec.structs import replace

from talkoo_core.errors import Conflict, InvalidInput, PermissionDenied
from talkoo_ledger.context import Context
from talkoo_ledger.messages import CommitSegment
from talkoo_ledger.placement import open_segment
from talkoo_ledger.records import Commitment, Segment, SegmentPhase, Task, TaskPhase
from talkoo_ledger.state import FINAL_PHASES, State, segment_key
from talkoo_ledger.tasks import free_placement, live_task, segment_count

STANDING = (SegmentPhase.COMMITTED, SegmentPhase.AUDITED, SegmentPhase.PASSED, SegmentPhase.ACCEPTED)


def commit_segment(context: Context, sender: str, message: CommitSegment) -> None:
    task = live_task(context.state, message.task_id)
    segment = _open_segment_for(context.state, task, sender, message)
    _check_work(task, segment, message)
    commitment = Commitment(message, sender, context.height, context.tx_hash)
    commitments = tuple(sorted((*segment.commitments, commitment), key=lambda each: each.segment.rank))
    segment = replace(segment, commitments=commitments)
    context.emit(
        "segment_committed",
        task.id,
        attempt=task.attempt,
        segment=segment.segment,
        rank=message.rank,
        node=sender,
        root=message.root.hex(),
    )
    if len(commitments) < len(segment.shards):
        put_segment(context.state, segment)
        return
    put_segment(context.state, replace(segment, phase=SegmentPhase.COMMITTED, committed_height=context.height))
    _advance(context, task, commitments[0].segment)


def put_segment(state: State, segment: Segment) -> None:
    state.segments.put(segment_key(segment.task_id, segment.attempt, segment.segment), segment)


def standing_segment(state: State, task: Task, number: int) -> Segment:
    """The committed segment of that number: earlier attempts' segments stand on unless they were discarded."""
    for attempt in range(task.attempt, 0, -1):
        segment = state.segments.get(segment_key(task.id, attempt, number))
        if segment is not None and segment.phase in STANDING:
            return segment
    raise AssertionError(f"no segment {number} of {task.id} stands")


def segments_in_flight(state: State, task: Task) -> list[Segment]:
    """Committed by all ranks, not yet accepted, in order."""
    return [standing_segment(state, task, number) for number in range(task.accepted_segments, task.next_segment)]


def discard_from(context: Context, task: Task, number: int, reason: str) -> None:
    """Discard the segment and all that were built on it; the task goes back to where the segment began."""
    state = context.state
    discarded = [standing_segment(state, task, each) for each in range(number, task.next_segment)]
    for segment in discarded:
        put_segment(state, replace(segment, phase=SegmentPhase.DISCARDED))
        context.emit("segment_discarded", task.id, attempt=segment.attempt, segment=segment.segment, reason=reason)
    if task.phase not in FINAL_PHASES:
        free_placement(context, task, reason)
        task = state.tasks[task.id]
    state.tasks.put(
        task.id,
        replace(
            task,
            next_segment=number,
            discarded_segments=task.discarded_segments + len(discarded),
            start_params_sha256=discarded[0].start_params_sha256,
            start_optimizer_sha256=discarded[0].start_optimizer_sha256,
            last_progress_height=context.height,
        ),
    )


def _advance(context: Context, task: Task, first: CommitSegment) -> None:
    """All ranks are in: the next segment starts from rank 0's blobs, while audits of this one run beside it."""
    task = replace(
        task,
        next_segment=task.next_segment + 1,
        fruitless_attempts=0,
        last_progress_height=context.height,
        start_params_sha256=first.params_sha256,
        start_optimizer_sha256=first.optimizer_sha256,
    )
    if task.next_segment == segment_count(task.spec):
        context.state.tasks.put(task.id, replace(task, phase=TaskPhase.VERIFYING, beacon=b""))
    else:
        open_segment(context, task)


def _open_segment_for(state: State, task: Task, sender: str, message: CommitSegment) -> Segment:
    if message.attempt != task.attempt:
        raise Conflict(f"{task.id} is at attempt {task.attempt}, not {message.attempt}", code="wrong_attempt")
    if task.phase is not TaskPhase.RUNNING or message.segment != task.next_segment:
        raise Conflict(
            f"{task.id} is {task.phase.name.lower()} and expects segment {task.next_segment}, not {message.segment}",
            code="wrong_segment",
        )
    if not any(shard.rank == message.rank and shard.node_id == sender for shard in task.shards):
        raise PermissionDenied(f"{sender} does not hold rank {message.rank} of {task.id}", code="not_your_task")
    segment = state.segments[segment_key(task.id, task.attempt, task.next_segment)]
    if any(each.segment.rank == message.rank for each in segment.commitments):
        raise Conflict(f"rank {message.rank} committed segment {message.segment} already", code="already_committed")
    return segment


def _check_work(task: Task, segment: Segment, message: CommitSegment) -> None:
    samples = segment.shards[message.rank].samples * segment.steps
    flops = samples * task.spec.flops_per_sample
    if (message.samples, message.flops) != (samples, flops):
        raise InvalidInput(
            f"rank {message.rank} has {samples} samples and {flops} FLOP in this segment, "
            f"not {message.samples} and {message.flops}",
            code="wrong_work",
        )
