"""Between the ledger's messages and what `status` speaks. The only module here that knows both."""

from __future__ import annotations

from collections.abc import Mapping

from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.ledger.v1 import state_pb2

from talkoo_operator.status import LedgerTask, Progress

_PHASES = {
    state_pb2.TASK_PHASE_PENDING: "pending",
    state_pb2.TASK_PHASE_RUNNING: "running",
    state_pb2.TASK_PHASE_VERIFYING: "verifying",
    state_pb2.TASK_PHASE_COMPLETED: "completed",
    state_pb2.TASK_PHASE_FAILED: "failed",
    state_pb2.TASK_PHASE_CANCELLED: "cancelled",
}


def ledger_task(task: state_pb2.Task, names: Mapping[str, str], waits_for: str = "") -> LedgerTask:
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
    )


def progress_of(update: agent_pb2.ProgressUpdate) -> Progress:
    return Progress(update.attempt, update.step, update.loss, update.samples_per_second, update.stage)
