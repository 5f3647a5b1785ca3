"""What the node must do for a task, decided from what the ledger says and what runs here. Pure.

The agent calls `decide` whenever something changed on either side, and does what comes back. It is level-triggered: a
missed event costs time, never correctness.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Stage(Enum):
    """Of the shard's child on this node."""

    STARTING = "starting"
    WAITING = "waiting"
    """Ready, without a segment to train."""
    TRAINING = "training"
    COMMITTING = "committing"
    """Segment trained; its blobs and its transaction are under way."""
    ENDED = "ended"
    """The child has failed or was lost; it is not started again for the same attempt."""


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as the ledger has it. `rank` is this node's in the present attempt, None when it has no part in it."""

    task_id: str
    running: bool
    """Placed and neither finished nor waiting for another placement."""
    attempt: int
    rank: int | None
    next_segment: int
    beacon: bytes
    """Of `next_segment`; empty until it is opened."""
    committed_here: bool
    """This node's commitment to `next_segment` is on the ledger."""
    steps: int
    steps_per_segment: int

    @property
    def segments(self) -> int:
        return -(-self.steps // self.steps_per_segment)


@dataclass(frozen=True, slots=True)
class ShardRun:
    """What this node has done in one attempt. `last_segment`: the last one given to the child, -1 before."""

    attempt: int
    stage: Stage
    last_segment: int


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` is what a person reads in the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait(Decision):
    pass


@dataclass(frozen=True, slots=True)
class StartShard(Decision):
    attempt: int
    rank: int


@dataclass(frozen=True, slots=True)
class StopShard(Decision):
    pass


@dataclass(frozen=True, slots=True)
class TrainSegment(Decision):
    segment: int
    beacon: bytes
    first_step: int
    steps: int


@dataclass(frozen=True, slots=True)
class ReportLost(Decision):
    """This node had begun the attempt and does not run it any more (the agent was restarted)."""

    attempt: int
    rank: int


@dataclass(frozen=True, slots=True)
class HandBack(Decision):
    """The node takes no part any more: another placement goes on from what is committed."""

    attempt: int
    rank: int


def decide(view: TaskView, run: ShardRun | None, begun_attempt: int, hand_back: str = "") -> Decision:
    """The next thing to do for one task.

    `run`: the shard on this node, None when there is none; `begun_attempt`: the highest attempt this node ever began
    (kept on disk), 0 when none; `hand_back`: why the node wants to be free of its shards, empty when it does not.
    """
    if not view.running:
        return StopShard("the task does not run any more") if run is not None else Wait("the task does not run")
    if view.rank is None:
        return StopShard("the task goes on without this node") if run is not None else Wait("another gang has it")
    if run is not None and run.attempt < view.attempt:
        return StopShard(f"attempt {view.attempt} takes the place of attempt {run.attempt}")
    if run is None:
        if begun_attempt >= view.attempt:
            return ReportLost(f"attempt {view.attempt} was begun here and is lost", view.attempt, view.rank)
        if hand_back:
            return HandBack(f"not begun: {hand_back}", view.attempt, view.rank)
        return StartShard(f"rank {view.rank} of attempt {view.attempt}", view.attempt, view.rank)
    return _next_segment(view, run, hand_back)


def _next_segment(view: TaskView, run: ShardRun, hand_back: str) -> Decision:
    if run.stage is Stage.ENDED:
        return Wait("this attempt has ended here; another must be placed")
    if run.stage is not Stage.WAITING:
        return Wait(f"the shard is {run.stage.value}")
    if view.committed_here or view.next_segment <= run.last_segment:
        return Wait(f"segment {run.last_segment} is committed; the peers' commitments are awaited")
    if view.next_segment >= view.segments:
        return Wait("all segments are trained; their audits are awaited")
    if len(view.beacon) != 32:
        return Wait(f"segment {view.next_segment} has no beacon yet")
    if run.last_segment >= 0 and view.next_segment != run.last_segment + 1:
        return StopShard(f"the ledger is at segment {view.next_segment}, this shard at {run.last_segment + 1}")
    # An attempt without a segment counts against the task, so one is done in any case.
    if hand_back and run.last_segment >= 0:
        assert view.rank is not None
        return HandBack(f"segment {run.last_segment} is done: {hand_back}", view.attempt, view.rank)
    first = view.next_segment * view.steps_per_segment
    return TrainSegment(
        f"segment {view.next_segment} of {view.segments}",
        segment=view.next_segment,
        beacon=view.beacon,
        first_step=first,
        steps=min(view.steps_per_segment, view.steps - first),
    )
