"""What the operator takes from the ledger's and the scheduler's messages."""

from __future__ import annotations

from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2
from talkoo_operator.wire import busy_and_fitting, ledger_task


def node(name: str, memory: int = 100, price: int = 5) -> state_pb2.Node:
    return state_pb2.Node(id=name, name=name, memory_bytes=memory, price_utlk_per_gflop=price)


def test_only_busy_nodes_that_would_fit_are_waited_for() -> None:
    nodes = {each.id: each for each in (node("fits"), node("busy"), node("small", memory=1), node("dear", price=9))}
    reasons = [scheduler_pb2.NodeReason(node_id="fits", name="fits", fits=True, reason="fits fits")]
    for name in ("busy", "small", "dear", "unknown"):
        reason = f"{name} is busy (runs task-1)"
        reasons.append(scheduler_pb2.NodeReason(node_id=name, name=name, reason=reason))
    reasons.append(scheduler_pb2.NodeReason(node_id="gone", name="gone", reason="gone does not offer itself"))
    spec = tx_pb2.TaskSpec(memory_bytes=50, price_utlk_per_gflop=6)
    assert busy_and_fitting(scheduler_pb2.Explanation(nodes=reasons), spec, nodes) == (1, ["busy"])


def test_the_first_report_of_the_kind_that_failed_the_task_names_the_worker() -> None:
    reports = [
        state_pb2.FailureReport(reporter="n1", kind="node_lost"),
        state_pb2.FailureReport(reporter="n2", kind="model_raised"),
        state_pb2.FailureReport(reporter="n3", kind="model_raised"),
    ]
    task = state_pb2.Task(
        id="task-1",
        phase=state_pb2.TASK_PHASE_FAILED,
        spec=tx_pb2.TaskSpec(steps=10, steps_per_segment=5),
        failure_kind="model_raised",
        failure_reports=reports,
    )
    assert ledger_task(task, {"n2": "north-2"}).reporter == "north-2"
    assert ledger_task(task, {}).reporter == "n2", "a node that nobody knows any more"
