"""Placement of a gang: fenced by the attempt, checked against what each node offers and has at stake."""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from talkoo_core.amounts import format_tlk
from talkoo_core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound, PermissionDenied
from talkoo_ledger import economy
from talkoo_ledger.context import Context
from talkoo_ledger.messages import PlaceTask, Shard
from talkoo_ledger.records import Node, Segment, SegmentPhase, Task, TaskPhase
from talkoo_ledger.state import State, segment_key
from talkoo_ledger.tasks import free_placement, live_task, steps_of_segment

BEACON_DOMAIN = b"talkoo/beacon/v1\n"


def place_task(context: Context, sender: str, message: PlaceTask) -> None:
    state = context.state
    if all(organization.scheduler != sender for organization in state.organizations.all()):
        raise PermissionDenied(
            f"{sender} is no organization's scheduler; only they place tasks", code="not_a_scheduler"
        )
    task = live_task(state, message.task_id)
    if message.attempt != task.attempt + 1:
        raise Conflict(
            f"{task.id} is at attempt {task.attempt}, the next placement is {task.attempt + 1}, not {message.attempt}",
            code="wrong_attempt",
        )
    _check_placeable(context, task)
    _check_gang(task, message.shards)
    for shard in message.shards:
        _check_node(context, task, shard)
    if task.phase is TaskPhase.RUNNING:
        free_placement(context, task, "placed again")
        task = state.tasks[task.id]
    task = replace(
        task,
        phase=TaskPhase.RUNNING,
        attempt=message.attempt,
        shards=message.shards,
        failure_reports=(),
        placement_reason=message.reason,
        last_progress_height=context.height,
    )
    context.emit(
        "task_placed",
        task.id,
        attempt=task.attempt,
        nodes=",".join(shard.node_id for shard in task.shards),
        first_segment=task.next_segment,
        reason=message.reason,
    )
    open_segment(context, task)


def open_segment(context: Context, task: Task) -> None:
    """Give the task's next segment its beacon (nobody could prepare its transcript) and say that it may start."""
    number = task.next_segment
    beacon = beacon_of(context.block.hash, task.id, task.attempt, number)
    context.state.tasks.put(task.id, replace(task, beacon=beacon))
    segment = Segment(
        task_id=task.id,
        attempt=task.attempt,
        segment=number,
        phase=SegmentPhase.OPEN,
        beacon=beacon,
        shards=task.shards,
        start_params_sha256=task.start_params_sha256,
        start_optimizer_sha256=task.start_optimizer_sha256,
        first_step=number * task.spec.steps_per_segment,
        steps=steps_of_segment(task.spec, number),
    )
    context.state.segments.put(segment_key(task.id, task.attempt, number), segment)
    context.emit("segment_opened", task.id, attempt=task.attempt, segment=number, beacon=beacon.hex())


def beacon_of(block_hash: bytes, task_id: str, attempt: int, segment: int) -> bytes:
    """Seed of data order and randomness of one segment."""
    return _tagged(BEACON_DOMAIN, block_hash, task_id, attempt, segment)


def _tagged(domain: bytes, block_hash: bytes, task_id: str, attempt: int, segment: int) -> bytes:
    place = attempt.to_bytes(4, "big") + segment.to_bytes(4, "big")
    return hashlib.sha256(domain + block_hash + task_id.encode() + place).digest()


def segment_price(task: Task, shard: Shard, segment: int) -> int:
    """What a shard earns for a segment, in utlk."""
    flops = shard.samples * steps_of_segment(task.spec, segment) * task.spec.flops_per_sample
    return economy.price_of_work(flops, shard.price_utlk_per_gflop)


def stake_needed(task: Task, shard: Shard, audit_floor_ppm: int, slash_ppm: int) -> int:
    """Stake in utlk at which forging this shard's segments loses money; segment 0 is never shorter than another."""
    rate = economy.audit_rate(task.spec.audit_rate_ppm, audit_floor_ppm)
    return economy.required_stake(segment_price(task, shard, 0), rate, slash_ppm)


def _check_placeable(context: Context, task: Task) -> None:
    if task.phase is TaskPhase.VERIFYING:
        raise Conflict(f"{task.id} is trained and waits for its audits; it needs no placement", code="task_not_waiting")
    stalled_at = task.last_progress_height + context.params.stall_blocks
    if task.phase is TaskPhase.RUNNING and context.height < stalled_at:
        raise Conflict(
            f"{task.id} runs; it may be placed anew when it makes no progress until block {stalled_at}, "
            "or when its nodes report one of them lost",
            code="still_running",
        )


def _check_gang(task: Task, shards: tuple[Shard, ...]) -> None:
    spec = task.spec
    if not spec.min_nodes <= len(shards) <= spec.max_nodes:
        raise InvalidInput(
            f"{len(shards)} nodes were placed, the task takes {spec.min_nodes} to {spec.max_nodes}", code="wrong_gang"
        )
    if [shard.rank for shard in shards] != list(range(len(shards))):
        raise InvalidInput("the shards' ranks must be 0, 1, 2… in order", code="wrong_gang")
    if len({shard.node_id for shard in shards}) != len(shards):
        raise InvalidInput("a node stands twice in the placement", code="wrong_gang")
    total = sum(shard.samples for shard in shards)
    if total != spec.global_batch:
        raise InvalidInput(
            f"the shards hold {total} samples, a global batch has {spec.global_batch}", code="wrong_gang"
        )


def _check_node(context: Context, task: Task, shard: Shard) -> None:
    node = context.state.nodes.get(shard.node_id)
    if node is None:
        raise NotFound(f"there is no node {shard.node_id}", code="unknown_node")
    if node.jailed:
        raise Conflict(
            f"{node.name} is jailed for forging until block {node.jailed_until_height} and until it bonds again",
            code="node_jailed",
        )
    if node.id in task.banned_nodes:
        raise Conflict(f"{node.name} forged in this task before and is not placed in it again", code="node_banned")
    if node.memory_bytes < task.spec.memory_bytes:
        raise Conflict(f"{node.name} has less memory than the task asks for", code="node_too_small")
    if not node.price_utlk_per_gflop <= shard.price_utlk_per_gflop <= task.spec.price_utlk_per_gflop:
        raise Conflict(
            f"the price for {node.name} must lie between what it takes ({format_tlk(node.price_utlk_per_gflop)}) and "
            f"what the task pays ({format_tlk(task.spec.price_utlk_per_gflop)}) per GFLOP",
            code="price_out_of_range",
        )
    _check_stake(context, task, node, shard)


def _check_stake(context: Context, task: Task, node: Node, shard: Shard) -> None:
    params = context.params
    needed = stake_needed(task, shard, params.audit_floor_ppm, params.slash_ppm)
    needed += _stake_in_use(context.state, task.id, node.id, params.audit_floor_ppm, params.slash_ppm)
    if node.stake_utlk < max(needed, params.min_node_stake_utlk):
        raise InsufficientFunds(
            f"{node.name} has a stake of {format_tlk(node.stake_utlk)}; with what it works on it needs "
            f"{format_tlk(max(needed, params.min_node_stake_utlk))} so that forging cannot pay",
            code="stake_too_small",
        )


def _stake_in_use(state: State, task_id: str, node_id: str, audit_floor_ppm: int, slash_ppm: int) -> int:
    """Stake that other tasks count on: one stake must not stand for two tasks at once."""
    return sum(
        stake_needed(task, shard, audit_floor_ppm, slash_ppm)
        for task in state.tasks.live()
        if task.id != task_id
        for shard in task.shards
        if shard.node_id == node_id
    )
