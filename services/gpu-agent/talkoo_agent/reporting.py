"""Look at the cards, take the keeper's orders, and write how the node is."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from pathlib import Path

from talkoo_api.agent.v1 import node_pb2

from talkoo_agent.gpu_metrics import count as count_changes
from talkoo_agent.node import Node
from talkoo_agent.nvml import Reading
from talkoo_agent.orders import read_orders
from talkoo_agent.work import Work
from talkoo_runtime.node_files import PODS_FILE, REPORT_FILE, read_message, write_message

log = logging.getLogger(__name__)
VERSION = importlib.metadata.version("talkoo")
REPORT_S = 1.0
READ_EVERY = 5
"""Cards are read at every so manieth report: a reading takes tens of milliseconds for each card."""


async def report_forever(node: Node, work: Work) -> None:
    """Without a shared folder only the cards are read."""
    folder = Path(node.settings.node_folder) if node.settings.node_folder else None
    count = 0
    while True:
        if count % READ_EVERY == 0:
            before = node.watch.latest
            now = await asyncio.to_thread(node.watch.read)
            count_changes(before, now, node.pods)
            if node.cards.note_faults({reading.gpu.uuid: reading.faults for reading in now}):
                log.error("faulty, and lent to no new shard: %s", node.cards.faults)
                work.changed.set()
        count += 1
        if folder is not None:
            _obey(node, work, await asyncio.to_thread(read_orders, folder))
            node.pods = await asyncio.to_thread(_read_pods, folder)
            report = report_of(node, work, time.time_ns())
            await asyncio.to_thread(write_message, folder / REPORT_FILE, report)
        await asyncio.sleep(REPORT_S)


def _read_pods(folder: Path) -> node_pb2.GpuPods:
    return read_message(folder / PODS_FILE, node_pb2.GpuPods) or node_pb2.GpuPods()


def _obey(node: Node, work: Work, orders: node_pb2.NodeOrders) -> None:
    if orders == node.orders:
        return
    log.info("new orders of the node's keeper: drain %r, hand back %s", orders.drain, orders.hand_back)
    node.orders = orders
    work.changed.set()


def report_of(node: Node, work: Work, now_ns: int) -> node_pb2.NodeReport:
    settings, device, standing = node.settings, node.device, node.standing
    report = node_pb2.NodeReport(
        time_ns=now_ns,
        node_id=node.id,
        version=VERSION,
        state=standing.state,
        reason=standing.reason,
        message=standing.message,
        kind=device.kind,
        device=device.description,
        memory_bytes=device.memory_bytes,
        price_utlk_per_gflop=settings.price_utlk_per_gflop,
        slots=node.cards.slots,
        gpus=[gpu_state(reading, node.cards.lends(reading.gpu)) for reading in node.watch.latest],
        shards=[
            node_pb2.HeldShard(
                task_id=s.task_id, attempt=s.attempt, rank=s.rank, stage=s.run.stage.value, card=s.card.uuid
            )
            for s in work.shards
        ],
    )
    record = standing.record
    if record is not None:
        report.hardware_class, report.speed_flops = record.hardware_class, record.speed_flops
        report.ledger.CopyFrom(
            node_pb2.LedgerStanding(
                stake_utlk=record.stake_utlk,
                earned_utlk=record.earned_utlk,
                slashed_utlk=record.slashed_utlk,
                verified_segments=record.verified_segments,
                verified_gflop=record.verified_gflop,
                jailed=record.jailed,
            )
        )
    return report


def gpu_state(reading: Reading, lent: bool) -> node_pb2.GpuState:
    gpu = reading.gpu
    return node_pb2.GpuState(
        index=gpu.index,
        uuid=gpu.uuid,
        product_name=gpu.product,
        brand=gpu.brand,
        architecture=gpu.architecture,
        cuda_compute_capability=gpu.compute_capability,
        driver_version=gpu.driver_version,
        cuda_driver_version=gpu.cuda_version,
        pcie_bus_id=gpu.pcie_bus_id,
        memory_bytes=gpu.memory_bytes,
        mig_capable=gpu.mig_capable,
        mig_enabled=gpu.mig_enabled,
        mig=[
            node_pb2.MigState(uuid=part.uuid, profile=part.profile, memory_bytes=part.memory_bytes) for part in gpu.mig
        ],
        faults=reading.faults,
        lent=lent,
    )
