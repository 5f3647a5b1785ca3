"""Decisions of an agent, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from talkoo_agent.rounds import (
    Decision,
    HandBack,
    ReportLost,
    ShardRun,
    Stage,
    StartShard,
    StopShard,
    TaskView,
    TrainSegment,
    Wait,
    decide,
)

BEACON = bytes(32)
VIEW = TaskView("task-1", True, 2, 1, 3, BEACON, False, steps=100, steps_per_segment=30)
READY = ShardRun(2, Stage.WAITING, 2)


@pytest.mark.parametrize(
    ("view", "run", "begun", "kind"),
    [
        (replace(VIEW, running=False), None, 0, Wait),
        (replace(VIEW, running=False), READY, 2, StopShard),
        (replace(VIEW, rank=None), None, 0, Wait),
        (replace(VIEW, rank=None), READY, 2, StopShard),
        (VIEW, None, 1, StartShard),
        (VIEW, None, 2, ReportLost),
        (VIEW, replace(READY, attempt=1), 1, StopShard),
        (VIEW, replace(READY, stage=Stage.STARTING), 2, Wait),
        (VIEW, replace(READY, stage=Stage.TRAINING), 2, Wait),
        (VIEW, replace(READY, stage=Stage.COMMITTING), 2, Wait),
        (VIEW, replace(READY, stage=Stage.ENDED), 2, Wait),
        (VIEW, READY, 2, TrainSegment),
        (VIEW, replace(READY, last_segment=-1), 2, TrainSegment),
        (VIEW, replace(READY, last_segment=0), 2, StopShard),
        (VIEW, replace(READY, last_segment=3), 2, Wait),
        (replace(VIEW, committed_here=True), READY, 2, Wait),
        (replace(VIEW, beacon=b""), READY, 2, Wait),
        (replace(VIEW, next_segment=4), replace(READY, last_segment=3), 2, Wait),
    ],
)
def test_each_situation_has_one_answer(view: TaskView, run: ShardRun | None, begun: int, kind: type[Decision]) -> None:
    decision = decide(view, run, begun)
    assert type(decision) is kind, decision
    assert decision.reason


def test_the_last_segment_may_be_shorter() -> None:
    order = decide(VIEW, READY, 2)
    assert isinstance(order, TrainSegment)
    assert (order.segment, order.first_step, order.steps) == (3, 90, 10)


@pytest.mark.parametrize(
    ("view", "run", "begun", "kind"),
    [
        (VIEW, READY, 2, HandBack),
        (VIEW, None, 1, HandBack),
        (VIEW, None, 2, ReportLost),
        (VIEW, replace(READY, last_segment=-1), 2, TrainSegment),
        (VIEW, replace(READY, stage=Stage.TRAINING), 2, Wait),
        (replace(VIEW, committed_here=True), READY, 2, Wait),
        (replace(VIEW, next_segment=4), replace(READY, last_segment=3), 2, Wait),
        (replace(VIEW, running=False), READY, 2, StopShard),
    ],
)
def test_a_draining_node_gives_a_shard_back_between_segments_but_not_before_the_first_is_done(
    view: TaskView, run: ShardRun | None, begun: int, kind: type[Decision]
) -> None:
    decision = decide(view, run, begun, "the node is cordoned")
    assert type(decision) is kind, decision
