"""Between the ledger's messages and what `rounds` and the trainer speak. The only module here that knows both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2

from talkoo_agent.cards import Card, Cards
from talkoo_agent.devices import Device
from talkoo_agent.rounds import TaskView
from talkoo_agent.settings import AgentSettings
from talkoo_agent.trainer_messages import Measured, SegmentDone, Start
from talkoo_core.errors import InvalidInput

FINAL_KINDS = ("missing_module", "model_raised", "loss_nan", "data_missing", "data_hash", "bad_program")
"""Failures that are the task's own: the ledger ends the task when most of the gang say the same."""

KIND_ON_LEDGER = {"bad_optimizer": "bad_program"}
NODE_LOST = "node_lost"
MESSAGE_MAX_BYTES = 1024


def shard_of(task: state_pb2.Task, node_id: str) -> tx_pb2.Shard | None:
    return next((shard for shard in task.shards if shard.node_id == node_id), None)


def view_of(task: state_pb2.Task, segment: state_pb2.Segment | None, node_id: str) -> TaskView:
    """`segment`: the task's `next_segment` as the ledger has it, None where nobody has begun it."""
    shard = shard_of(task, node_id)
    committed = segment is not None and any(one.node_id == node_id for one in segment.commitments)
    return TaskView(
        task_id=task.id,
        running=task.phase == state_pb2.TASK_PHASE_RUNNING,
        attempt=task.attempt,
        rank=shard.rank if shard is not None else None,
        next_segment=task.next_segment,
        beacon=bytes(task.beacon),
        committed_here=committed,
        steps=task.spec.steps,
        steps_per_segment=task.spec.steps_per_segment,
    )


def shares_of(task: state_pb2.Task) -> list[int]:
    return [shard.samples for shard in sorted(task.shards, key=lambda shard: shard.rank)]


def data_file_name(spec: tx_pb2.TaskSpec) -> str:
    """Raises InvalidInput (code `bad_program`) for a name that leaves its folder."""
    name = spec.data_name or "data"
    if Path(name).name != name or name in (".", ".."):
        raise InvalidInput(f"the task's data name {name!r} is not a plain file name", code="bad_program")
    return name


def config_of(config_json: str) -> dict[str, object]:
    """Raises InvalidInput (code `bad_program`) for anything but a JSON object."""
    try:
        config = json.loads(config_json or "{}")
    except ValueError as error:
        raise InvalidInput(f"the task's config is not JSON: {error}", code="bad_program") from error
    if not isinstance(config, dict):
        raise InvalidInput("the task's config must be a JSON object", code="bad_program")
    return config


def is_star(nodes: Sequence[state_pb2.Node]) -> bool:
    """Whether a gang of these nodes meets at rank 0 only: one of them cannot be dialled by another organization's."""
    return len({node.organization for node in nodes}) > 1 and any(node.outbound_only for node in nodes)


def start_of(
    task: state_pb2.Task,
    rank: int,
    folder: Path,
    settings: AgentSettings,
    device: Device,
    card: Card,
    meeting: tuple[str, int],
    *,
    star: bool,
) -> Start:
    """The trainer's first line. `folder` holds `code/`, `data/` and, for a resumed task, the two checkpoints."""
    spec = task.spec
    return Start(
        task=task.id,
        rank=rank,
        shares=shares_of(task),
        host=meeting[0],
        port=meeting[1],
        code_dir=str(folder / "code"),
        module=spec.module,
        config=config_of(spec.config_json),
        data_path=str(folder / "data" / data_file_name(spec)),
        data_sha256=spec.data.sha256,
        optimizer=spec.optimizer.name,
        optimizer_options_json=spec.optimizer.options_json,
        seed=spec.seed,
        params_path=str(folder / "params.safetensors") if task.start_params_sha256 else "",
        optimizer_path=str(folder / "optimizer.safetensors") if task.start_optimizer_sha256 else "",
        work_dir=str(folder / "work"),
        backend=device.backend,
        card=card.uuid,
        exchange="star" if star else "mesh",
        duty=settings.duty,
        forge_from_segment=settings.forge_from_segment,
    )


def commitment_of(
    task_id: str, attempt: int, rank: int, done: SegmentDone, transcript_sha256: str, energy_mj: int
) -> tx_pb2.CommitSegment:
    return tx_pb2.CommitSegment(
        task_id=task_id,
        attempt=attempt,
        segment=done.segment,
        rank=rank,
        root=bytes.fromhex(done.root),
        transcript_sha256=transcript_sha256,
        params_sha256=done.params_sha256,
        optimizer_sha256=done.optimizer_sha256,
        samples=done.samples,
        flops=done.samples * done.flops_per_sample,
        loss_bits=done.loss_bits,
        energy_mj=energy_mj,
        duration_ms=round(done.duration_s * 1000),
    )


def failure_of_task(task_id: str, attempt: int, kind: str, message: str) -> tx_pb2.FailTask:
    """What the ledger hears: the task's own failures by their kind, everything else as a lost node."""
    known = KIND_ON_LEDGER.get(kind, kind)
    text = message.encode()[:MESSAGE_MAX_BYTES].decode("utf-8", "ignore")
    return tx_pb2.FailTask(
        task_id=task_id, attempt=attempt, kind=known if known in FINAL_KINDS else NODE_LOST, message=text
    )


def registration_of(
    settings: AgentSettings, device: Device, measured: Measured, stake_utlk: int
) -> tx_pb2.RegisterNode:
    return tx_pb2.RegisterNode(
        name=settings.name,
        organization=settings.organization,
        endpoint=settings.endpoint,
        hardware_class=measured.hardware_class,
        device=device.description,
        memory_bytes=device.memory_bytes,
        speed_flops=measured.speed_flops,
        price_utlk_per_gflop=settings.price_utlk_per_gflop,
        stake_utlk=stake_utlk,
        power_mw=device.power_mw,
        power_source=device.power_source,
        request_price_utlk=settings.request_price_utlk,
        endorsement=bytes.fromhex(settings.endorsement),
        outbound_only=settings.outbound_only,
    )


def offer_of(
    settings: AgentSettings,
    node: state_pb2.Node,
    cards: Cards,
    running: Sequence[str],
    served: Sequence[str],
    draining: str = "",
) -> scheduler_pb2.Offer:
    """`draining`: why no new work is wanted, empty when it is."""
    state = "draining" if draining else ("ready" if cards.free else "busy")
    taken = f"{len(running)} of {cards.slots} slots are taken" if state == "busy" else ""
    faulty = f"not lent for its fault: {cards.faults}" if cards.faults else ""
    reason = draining or "; ".join(filter(None, (taken, faulty)))
    return scheduler_pb2.Offer(
        node_id=node.id,
        name=settings.name,
        organization=settings.organization,
        endpoint=settings.endpoint,
        hardware_class=node.hardware_class,
        free_memory_bytes=node.memory_bytes,
        speed_flops=node.speed_flops,
        price_utlk_per_gflop=settings.price_utlk_per_gflop,
        request_price_utlk=settings.request_price_utlk,
        running_tasks=list(running),
        served_models=list(served),
        state=state,
        reason=reason,
        slots=cards.slots,
        outbound_only=settings.outbound_only,
    )
