"""Audits: which committed segments are opened, and what follows from the verdict.

The draw of a segment uses the hash of a later block than the one that holds its commitments, so whoever commits cannot
know whether it will be opened. The proposer of that later block has some say over its hash (which transactions, in
which order); with n organizations taking turns this moves the odds of one segment in n, not of a task.
"""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from talkoo_core.amounts import PPM
from talkoo_ledger import economy
from talkoo_ledger.context import Context
from talkoo_ledger.messages import Verdict
from talkoo_ledger.records import Segment, SegmentPhase, Task
from talkoo_ledger.rewards import slash_forgers
from talkoo_ledger.segments import discard_from, put_segment, segments_in_flight
from talkoo_ledger.state import State
from talkoo_ledger.tasks import segment_count
from talkoo_ledger.verdicts import agreed_outcome, agreeing_validators, audit_is_over, normalized

DRAW_DOMAIN = b"talkoo/draw/v1\n"


def draw_of(block_hash: bytes, task_id: str, attempt: int, segment: int) -> bytes:
    place = attempt.to_bytes(4, "big") + segment.to_bytes(4, "big")
    return hashlib.sha256(DRAW_DOMAIN + block_hash + task_id.encode() + place).digest()


def is_opened(draw: bytes, rate_ppm: int) -> bool:
    """First 8 bytes as a fraction of 2^64 below the rate; in integers."""
    return int.from_bytes(draw[:8], "big") * PPM < rate_ppm << 64


def draw_segments(context: Context) -> None:
    """Draw for every segment that was committed in an earlier block."""
    for task in context.state.tasks.live():
        for segment in segments_in_flight(context.state, task):
            if segment.phase is SegmentPhase.COMMITTED and segment.committed_height < context.height:
                _draw(context, task, segment)


def awaits_draw(state: State) -> bool:
    """Whether the next block has something to draw, so that it should not wait for transactions."""
    return any(
        segment.phase is SegmentPhase.COMMITTED
        for task in state.tasks.live()
        for segment in segments_in_flight(state, task)
    )


def decide_audits(context: Context, task_id: str) -> None:
    """Take the verdicts that are ripe, first segment first: a discarded one takes all later ones with it."""
    state = context.state
    for segment in segments_in_flight(state, state.tasks[task_id]):
        task = state.tasks[task_id]
        if segment.segment >= task.next_segment:
            break
        if segment.phase is not SegmentPhase.AUDITED:
            continue
        outcome = agreed_outcome(state, segment, segment_count(task.spec))
        if outcome is not None:
            if not segment.quorum_height:
                segment = replace(segment, quorum_height=context.height)
                put_segment(state, segment)
            if audit_is_over(segment, context.height, context.params):
                _decide(context, task, segment, normalized(outcome, segment.segment + 1 == segment_count(task.spec)))
        elif context.height >= segment.audit_deadline_height:
            _extend(context, task, segment)


def _draw(context: Context, task: Task, segment: Segment) -> None:
    draw = draw_of(context.block.hash, task.id, segment.attempt, segment.segment)
    rate, reason = _rate(context, task, segment)
    segment = replace(segment, draw=draw, draw_rate_ppm=rate)
    if is_opened(draw, rate):
        deadline = context.height + context.params.audit_deadline_blocks
        put_segment(context.state, replace(segment, phase=SegmentPhase.AUDITED, audit_deadline_height=deadline))
        _emit_opened(context, segment, reason)
    else:
        put_segment(context.state, replace(segment, phase=SegmentPhase.PASSED, decided_height=context.height))
        context.emit(
            "audit_skipped",
            task.id,
            attempt=segment.attempt,
            segment=segment.segment,
            draw=draw.hex(),
            rate_ppm=rate,
        )


def _rate(context: Context, task: Task, segment: Segment) -> tuple[int, str]:
    """The chance to be opened, in ppm, and why it is that."""
    first = segment.commitments[0].segment
    if any(
        (each.segment.params_sha256, each.segment.optimizer_sha256) != (first.params_sha256, first.optimizer_sha256)
        for each in segment.commitments
    ):
        return PPM, "the ranks committed to different results"
    if segment.segment + 1 == segment_count(task.spec):
        return PPM, "the last segment"
    nodes = [context.state.nodes[shard.node_id] for shard in segment.shards]
    new = [node.name for node in nodes if node.verified_segments < context.params.probation_segments]
    if new:
        return PPM, f"on probation: {', '.join(new)}"
    return economy.audit_rate(task.spec.audit_rate_ppm, context.params.audit_floor_ppm), "drawn by lot"


def _emit_opened(context: Context, segment: Segment, reason: str) -> None:
    context.emit(
        "audit_opened",
        segment.task_id,
        attempt=segment.attempt,
        segment=segment.segment,
        rate_ppm=segment.draw_rate_ppm,
        reason=reason,
    )


def _decide(context: Context, task: Task, segment: Segment, outcome: Verdict) -> None:
    state = context.state
    segment = replace(segment, outcome=outcome, decided_height=context.height)
    put_segment(state, segment)
    forgers = tuple(
        shard.node_id
        for shard, finding in zip(segment.shards, outcome.findings, strict=outcome.available)
        if outcome.available and not finding.honest
    )
    word = "forged" if forgers else "honest" if outcome.available else "unavailable"
    context.emit(
        "verdict",
        task.id,
        attempt=segment.attempt,
        segment=segment.segment,
        outcome=word,
        forgers=",".join(forgers),
    )
    _count_verdicts(state, segment)
    if forgers:
        _punish(context, task, segment, forgers)
    elif not outcome.available:
        discard_from(context, task, segment.segment, "its blobs could not be had")
    else:
        put_segment(state, replace(segment, phase=SegmentPhase.PASSED))


def _punish(context: Context, task: Task, segment: Segment, forgers: tuple[str, ...]) -> None:
    """Slash first, while the discarded segments still stand and say whose work is lost; then discard."""
    state = context.state
    discarded = [each for each in segments_in_flight(state, task) if each.segment >= segment.segment]
    slash_forgers(context, task, segment, discarded, forgers)
    banned = tuple(sorted({*task.banned_nodes, *forgers}))
    names = ", ".join(state.nodes[forger].name for forger in forgers)
    discard_from(context, replace(task, banned_nodes=banned), segment.segment, f"forged by {names}")


def _extend(context: Context, task: Task, segment: Segment) -> None:
    """No quorum in time: ask those again who have not answered, and give up after some rounds."""
    extensions, most = segment.audit_extensions + 1, context.params.max_audit_extensions
    if extensions > most:
        discard_from(context, task, segment.segment, "the validators did not agree in time")
        return
    deadline = context.height + context.params.audit_deadline_blocks
    segment = replace(segment, audit_extensions=extensions, audit_deadline_height=deadline)
    put_segment(context.state, segment)
    _emit_opened(context, segment, f"no quorum yet: asked again, {extensions} of {most}")


def _count_verdicts(state: State, segment: Segment) -> None:
    """Verdicts that agree with the outcome earn a part of the epoch's emission."""
    agreeing = set(agreeing_validators(state, segment))
    for organization in state.organizations.all():
        if organization.validator in agreeing:
            state.organizations.put(
                organization.name, replace(organization, epoch_verdicts=organization.epoch_verdicts + 1)
            )
