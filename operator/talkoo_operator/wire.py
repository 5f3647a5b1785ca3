"""Between the ledger's messages and what `status` speaks. The only module here that knows both."""

from __future__ import annotations

from collections.abc import Mapping

from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2

from talkoo_operator.status import LedgerTask, Progress

_PHASES = {
    state_pb2.TASK_PHASE_PENDING: "pending",
    state_pb2.TASK_PHASE_RUNNING: "running",
    state_pb2.TASK_PHASE_VERIFYING: "verifying",
    state_pb2.TASK_PHASE_COMPLETED: "completed",
    state_pb2.TASK_PHASE_FAILED: "failed",
    state_pb2.TASK_PHASE_CANCELLED: "cancelled",
}


def ledger_task(
    task: state_pb2.Task, names: Mapping[str, str], waits_for: str = "", starts_at: float | None = None
) -> LedgerTask:
    """`names` of nodes by id."""
    shards = sorted(task.shards, key=lambda shard: shard.rank)
    return LedgerTask(
        id=task.id,
        phase=_PHASES[task.phase],
        attempt=task.attempt,
        steps=task.spec.steps,
        segments=-(-task.spec.steps // max(task.spec.steps_per_segment, 1)),
        committed=task.next_segment,
        accepted=task.accepted_segments,
        discarded=task.discarded_segments,
        escrow_utlk=task.escrow_utlk,
        spent_utlk=task.spent_utlk,
        workers=tuple(names.get(shard.node_id, shard.node_id) for shard in shards),
        banned=tuple(names.get(node_id, node_id) for node_id in task.banned_nodes),
        failure=task.failure,
        failure_kind=task.failure_kind,
        model_version=task.model_version,
        placement_reason=task.placement_reason,
        waits_for=waits_for,
        starts_at=starts_at,
        reporter=_reporter(task, names),
    )


def busy_and_fitting(
    explained: scheduler_pb2.Explanation, spec: tx_pb2.TaskSpec, nodes: Mapping[str, state_pb2.Node]
) -> tuple[int, list[str]]:
    """How many nodes fit now, and the names of those that would if they were not busy."""
    busy = []
    for each in explained.nodes:
        node = nodes.get(each.node_id)
        if each.fits or node is None or f"{each.name} is busy" not in each.reason:
            continue
        cheap = node.price_utlk_per_gflop <= spec.price_utlk_per_gflop
        if cheap and node.memory_bytes >= spec.memory_bytes:
            busy.append(str(each.name))
    return sum(each.fits for each in explained.nodes), busy


def progress_of(update: agent_pb2.ProgressUpdate, steps_per_second: float = 0.0) -> Progress:
    return Progress(update.attempt, update.step, update.loss, update.samples_per_second, update.stage, steps_per_second)


def _reporter(task: state_pb2.Task, names: Mapping[str, str]) -> str:
    first = next((report for report in task.failure_reports if report.kind == task.failure_kind), None)
    return names.get(first.reporter, first.reporter) if first is not None else ""
