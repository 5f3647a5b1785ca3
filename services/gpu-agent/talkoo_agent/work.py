"""The agent's work on tasks: follow the ledger, decide for each task that names this node, do it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from pathlib import Path

import grpc
from talkoo_api.ledger.v1 import service_pb2, state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2

from talkoo_agent.metrics import count_payment
from talkoo_agent.node import Node
from talkoo_agent.rounds import (
    Decision,
    HandBack,
    ReportLost,
    StartShard,
    StopShard,
    TrainSegment,
    Wait,
    decide,
)
from talkoo_agent.shard import Agents, Shard
from talkoo_agent.wire import failure_of_task, view_of
from talkoo_core.errors import Conflict, NotFound, TalkooError
from talkoo_runtime.disk import write_atomic
from talkoo_runtime.supervision import Background

log = logging.getLogger(__name__)

PENDING_CHANGES = 10_000
"""Tasks waiting to be looked at; far more than one node can have."""
REVIEW_S = 5.0
"""Every task here is looked at again so often, should an event have been missed."""
REPORT_TIMEOUT_S = 10.0
KEPT_BEGUN = 1_000
"""Tasks whose begun attempts are remembered, the latest."""


class Work:
    """Runs as two background tasks: one follows blocks, one decides. Decisions are taken one at a time."""

    def __init__(self, node: Node, agents: Agents) -> None:
        self._node = node
        self._agents = agents
        self._shards: dict[str, Shard] = {}
        self._waiting: set[str] = set()
        """Placed here while no slot was free."""
        self._reported: set[tuple[str, int]] = set()
        self._last_reason: dict[str, str] = {}
        self._changes: asyncio.Queue[str] = asyncio.Queue(PENDING_CHANGES)
        self._begun_path = node.folder / "begun.json"
        self._begun: dict[str, int] = _read_begun(self._begun_path)
        self.changed = asyncio.Event()
        """Set when a shard came or went: the offer is then out of date."""

    @property
    def running_tasks(self) -> list[str]:
        return sorted(self._shards)

    def rates(self) -> list[float]:
        """Samples per second of each shard."""
        return [shard.samples_per_second for shard in list(self._shards.values())]

    @property
    def shards(self) -> list[Shard]:
        return [self._shards[task_id] for task_id in self.running_tasks]

    def shard(self, task_id: str, attempt: int) -> Shard | None:
        found = self._shards.get(task_id)
        return found if found is not None and found.attempt == attempt else None

    def start(self, background: Background) -> None:
        background.start_restarting("follow the ledger", self._follow)
        background.start("decide", self._decide_forever())
        background.start("review", self._review_forever())

    async def stop(self) -> None:
        await asyncio.gather(*(shard.stop() for shard in self._shards.values()))

    async def _follow(self) -> None:
        """All tasks of the present first, then whatever a block says about a task that may concern this node."""
        height = (await self._node.ledger.status()).height
        for task in await self._node.ledger.list("tasks", state_pb2.Task):
            self._note(task.id)
        async for block in self._node.ledger.follow(height + 1):
            for event in block.events:
                count_payment(event, self._node.id)
                if self._concerns(event):
                    self._note(event.subject)

    def _concerns(self, event: service_pb2.Event) -> bool:
        if event.type == "task_placed":
            nodes = next((a.value for a in event.attributes if a.key == "nodes"), "")
            return event.subject in self._shards or self._node.id in nodes.split(",")
        return event.subject in self._shards

    def _note(self, task_id: str) -> None:
        if not self._changes.full():  # a full queue is looked at anyway, by the review
            self._changes.put_nowait(task_id)

    async def _review_forever(self) -> None:
        while True:
            await asyncio.sleep(REVIEW_S)
            for task_id in [*self._shards, *self._waiting]:
                self._note(task_id)

    async def _decide_forever(self) -> None:
        while True:
            task_id = await self._changes.get()
            try:
                await self._look_at(task_id)
            except TalkooError as error:
                log.warning("%s could not be looked at (%s); it is again in %.0f s", task_id, error, REVIEW_S)

    async def _look_at(self, task_id: str) -> None:
        try:
            task = await self._node.ledger.task(task_id)
        except NotFound:
            return
        segment: state_pb2.Segment | None = None
        with contextlib.suppress(NotFound):  # nobody has begun it
            segment = await self._node.ledger.segment(task_id, task.attempt, task.next_segment)
        self._waiting.discard(task_id)
        shard = self._shards.get(task_id)
        view = view_of(task, segment, self._node.id)
        run, begun = shard.run if shard is not None else None, self._begun.get(task_id, 0)
        decision = decide(view, run, begun, self._node.hand_back)
        self._say(task_id, decision)
        await self._do(decision, task, shard)
        if shard is not None and shard.failure is not None:
            await self._report(task_id, shard.attempt, shard.rank, shard.failure.kind, shard.failure.message)

    async def _do(self, decision: Decision, task: state_pb2.Task, shard: Shard | None) -> None:
        if isinstance(decision, StartShard):
            await self._start_shard(task, decision.rank)
        elif isinstance(decision, TrainSegment):
            assert shard is not None
            await shard.train(decision)
        elif isinstance(decision, StopShard):
            assert shard is not None
            await self._stop_shard(shard)
            self._note(task.id)  # a higher attempt may want this node again
        elif isinstance(decision, HandBack):
            await self._report(task.id, decision.attempt, decision.rank, "node_drained", decision.reason)
            if shard is not None:
                await self._stop_shard(shard)
        elif isinstance(decision, ReportLost):
            await self._report(task.id, decision.attempt, decision.rank, "node_lost", decision.reason)

    async def _start_shard(self, task: state_pb2.Task, rank: int) -> None:
        card = self._node.cards.take(task.id)
        if card is None:
            log.info("%s waits for a free slot", task.id)
            self._waiting.add(task.id)
            return
        self._begun[task.id] = task.attempt
        self._begun = dict(list(self._begun.items())[-KEPT_BEGUN:])
        write_atomic(self._begun_path, json.dumps(self._begun).encode())
        shard = Shard(self._node, task, rank, card, self._agents, self._note)
        self._shards[task.id] = shard
        self._node.logs.of(task.id).reopen()
        self._node.progress.of(task.id).reopen()
        shard.start()
        self.changed.set()

    async def _stop_shard(self, shard: Shard) -> None:
        del self._shards[shard.task_id]
        await shard.stop()
        self._node.cards.give_back(shard.task_id)  # its child has ended: another may compute there
        self._node.spare.refill()
        self._node.stage(shard.task_id, shard.attempt, "done")
        self._node.logs.of(shard.task_id).close()
        self._node.progress.of(shard.task_id).close()
        self.changed.set()

    async def _report(self, task_id: str, attempt: int, rank: int, kind: str, message: str) -> None:
        """Once for each attempt: to the ledger, which counts, and to the scheduler, which explains and places anew."""
        if (task_id, attempt) in self._reported:
            return
        try:
            await self._node.ledger.submit(failure_of_task(task_id, attempt, kind, message))
        except Conflict as error:  # the task has ended or goes on elsewhere, or this was said already
            log.info("%s: the report of %s came late: %s", task_id, kind, error.message)
        report = scheduler_pb2.ReportShardRequest(
            task_id=task_id,
            attempt=attempt,
            rank=rank,
            node_id=self._node.id,
            kind=kind,
            message=message,
        )
        self._reported.add((task_id, attempt))
        try:
            await self._node.scheduler.ReportShard(report, timeout=REPORT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:  # the ledger has heard it, which is what counts
            log.warning("the scheduler could not be told that %s ended here: %s", task_id, error.details())

    def _say(self, task_id: str, decision: Decision) -> None:
        """A decision is logged when it is another one than before."""
        line = f"{type(decision).__name__}: {decision.reason}"
        if self._last_reason.get(task_id) != line:
            self._last_reason[task_id] = line
            level = logging.DEBUG if isinstance(decision, Wait) else logging.INFO
            log.log(level, "%s %s", task_id, line)


def _read_begun(path: Path) -> dict[str, int]:
    """Task → highest attempt begun here. Without the file, none was."""
    try:
        return {str(task): int(attempt) for task, attempt in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
