"""The ledger's and the market's messages as the policy's own types. The only module here that knows both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2

from talkoo_scheduler.policy import Candidate, Demand, PlannedShard, Rules, stake_needed_utlk

REASON_MAX_BYTES = 1024
"""The ledger's bound for the reason of a placement."""
ENDED = frozenset({state_pb2.TASK_PHASE_COMPLETED, state_pb2.TASK_PHASE_FAILED, state_pb2.TASK_PHASE_CANCELLED})


def rules_of(params: state_pb2.Params) -> Rules:
    return Rules(params.slash_ppm, params.audit_floor_ppm, params.min_node_stake_utlk)


def needs_placement(task: state_pb2.Task, height: int, stall_blocks: int) -> bool:
    """Waiting tasks, and running ones that made no progress for the ledger's bound."""
    if task.phase == state_pb2.TASK_PHASE_PENDING:
        return True
    return task.phase == state_pb2.TASK_PHASE_RUNNING and height >= task.last_progress_height + stall_blocks


def shards_by_owner(tasks: Iterable[state_pb2.Task]) -> dict[str, int]:
    """Shards that each owner's live tasks hold."""
    held: dict[str, int] = {}
    for task in tasks:
        if task.phase not in ENDED:
            held[task.owner] = held.get(task.owner, 0) + len(task.shards)
    return held


def demand_of(task: state_pb2.Task, held: Mapping[str, int]) -> Demand:
    """`held`: what `shards_by_owner` says."""
    spec = task.spec
    return Demand(
        task_id=task.id,
        name=spec.name,
        owner=task.owner,
        min_nodes=spec.min_nodes,
        max_nodes=spec.max_nodes,
        memory_bytes=spec.memory_bytes,
        price_utlk_per_gflop=spec.price_utlk_per_gflop,
        global_batch=spec.global_batch,
        steps_per_segment=min(spec.steps, spec.steps_per_segment),
        flops_per_sample=spec.flops_per_sample,
        audit_rate_ppm=spec.audit_rate_ppm,
        created_height=task.created_height,
        banned=frozenset(task.banned_nodes),
        owner_running=held.get(task.owner, 0) - len(task.shards),
    )


def candidates_for(
    task: state_pb2.Task,
    nodes: Iterable[state_pb2.Node],
    offers: Mapping[str, scheduler_pb2.Offer],
    stake_in_use: Mapping[str, int],
    running: Mapping[str, Sequence[state_pb2.Task]],
    passed_over: Mapping[str, int],
) -> list[Candidate]:
    """Every registered node, offered or not, as this task sees it."""
    found = []
    for node in nodes:
        offer = offers.get(node.id)
        state, reason = _state(task, offer, running.get(node.id, ())) if offer else ("", "")
        found.append(
            Candidate(
                node_id=node.id,
                name=node.name,
                organization=node.organization,
                offered=offer is not None,
                state=state,
                state_reason=reason,
                memory_bytes=min(node.memory_bytes, offer.free_memory_bytes) if offer else node.memory_bytes,
                speed_flops=offer.speed_flops if offer else node.speed_flops,
                price_utlk_per_gflop=node.price_utlk_per_gflop,
                stake_utlk=node.stake_utlk,
                stake_in_use_utlk=stake_in_use.get(node.id, 0),
                jailed_until_height=node.jailed_until_height if node.jailed else None,
                hardware_class=node.hardware_class,
                passed_over=passed_over.get(node.id, 0),
                outbound_only=node.outbound_only or (offer is not None and offer.outbound_only),
            )
        )
    return found


def running_on(tasks: Iterable[state_pb2.Task]) -> dict[str, list[state_pb2.Task]]:
    """Tasks in training by node, as the ledger has them: an offer is older than a placement that was just made."""
    found: dict[str, list[state_pb2.Task]] = {}
    for task in tasks:
        if task.phase == state_pb2.TASK_PHASE_RUNNING:
            for shard in task.shards:
                found.setdefault(shard.node_id, []).append(task)
    return found


def _state(task: state_pb2.Task, offer: scheduler_pb2.Offer, running: Sequence[state_pb2.Task]) -> tuple[str, str]:
    """A node that is busy with nothing but this very task is free for its next attempt."""
    others = sorted(other.spec.name for other in running if other.id != task.id)
    if offer.state == "busy" and set(offer.running_tasks) != {task.id}:
        return "busy", offer.reason
    if offer.state in ("busy", "ready") and len(others) >= max(offer.slots, 1):
        return "busy", f"runs {', '.join(others)}"
    return ("ready" if offer.state == "busy" else offer.state), offer.reason


def stake_in_use(tasks: Iterable[state_pb2.Task], besides: str, rules: Rules) -> dict[str, int]:
    """Stake that other live tasks count on, by node, in utlk."""
    used: dict[str, int] = {}
    for task in tasks:
        if task.id == besides or task.phase in ENDED:
            continue
        demand = demand_of(task, {})
        for shard in task.shards:
            needed = stake_needed_utlk(demand, shard.samples, shard.price_utlk_per_gflop, rules)
            used[shard.node_id] = used.get(shard.node_id, 0) + needed
    return used


def place_message(task: state_pb2.Task, shards: Iterable[PlannedShard], reason: str) -> tx_pb2.PlaceTask:
    return tx_pb2.PlaceTask(
        task_id=task.id,
        attempt=task.attempt + 1,
        shards=[
            tx_pb2.Shard(node_id=s.node_id, rank=s.rank, samples=s.samples, price_utlk_per_gflop=s.price_utlk_per_gflop)
            for s in shards
        ],
        reason=reason.encode()[:REASON_MAX_BYTES].decode("utf-8", "ignore"),
    )


def phase_sentence(task: state_pb2.Task) -> str:
    """What the ledger alone can say of a task; empty while it waits for a placement."""
    total = -(-task.spec.steps // max(task.spec.steps_per_segment, 1))
    if task.phase == state_pb2.TASK_PHASE_RUNNING:
        trained = f"{task.next_segment} of {total} segments are trained"
        return f"runs: attempt {task.attempt}, {trained}; {task.placement_reason}"
    if task.phase == state_pb2.TASK_PHASE_VERIFYING:
        return f"is trained; {task.accepted_segments} of {total} segments are accepted, the others wait for audits"
    if task.phase == state_pb2.TASK_PHASE_COMPLETED:
        return f"completed: {task.model_version}"
    if task.phase == state_pb2.TASK_PHASE_FAILED:
        return f"failed ({task.failure_kind}): {task.failure}"
    if task.phase == state_pb2.TASK_PHASE_CANCELLED:
        return "was cancelled by its owner"
    return ""
