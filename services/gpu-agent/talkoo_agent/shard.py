"""One attempt of one task on this node: a trainer child from its start to its end."""

from __future__ import annotations

import asyncio
import functools
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.ledger.v1 import state_pb2, tx_pb2

from talkoo_agent.cards import Card
from talkoo_agent.child import LineChild
from talkoo_agent.devices import EnergyMeter
from talkoo_agent.materials import fetch_for_task
from talkoo_agent.metrics import FAILURES, SEGMENTS, STEPS
from talkoo_agent.node import Node
from talkoo_agent.relay import Door
from talkoo_agent.rounds import ShardRun, Stage, TrainSegment
from talkoo_agent.trainer_messages import (
    ChildFailed,
    FromTrainer,
    Listening,
    Ready,
    RunSegment,
    SegmentDone,
    Step,
)
from talkoo_agent.wire import commitment_of, is_star, start_of
from talkoo_core.errors import Conflict, InvalidInput, NotFound, TalkooError, Unavailable
from talkoo_runtime.telemetry import record, span

log = logging.getLogger(__name__)

RENDEZVOUS_TIMEOUT_S = 90.0
RENDEZVOUS_PAUSE_S = 0.2
RENDEZVOUS_CALL_S = 5.0
COMMIT_PAUSE_S = 1.0
KEPT_SEGMENTS = 2
"""Older segments' files are uploaded and removed here."""


class Agents(Protocol):
    """Other nodes' agents, by their endpoints."""

    async def rendezvous(
        self, endpoint: str, request: agent_pb2.RendezvousRequest, timeout_s: float
    ) -> agent_pb2.RendezvousResponse:
        """Where rank 0 listens. Raises Unavailable or NotFound."""
        ...

    async def relay(self, endpoint: str) -> Any:
        """A new `Agent.Relay` call."""
        ...


class Shard:
    """`on_change` is called whenever `run` changed; `failure` says why the shard ended, empty otherwise."""

    def __init__(
        self, node: Node, task: state_pb2.Task, rank: int, card: Card, agents: Agents, on_change: Callable[[str], None]
    ) -> None:
        self.task_id, self.attempt, self.rank, self.card = task.id, task.attempt, rank, card
        self.run = ShardRun(task.attempt, Stage.STARTING, -1)
        self.failure: ChildFailed | None = None
        self.listening: Listening | None = None
        self.samples_per_second = 0.0
        """Of the last step; 0 while nothing is trained."""
        self._node, self._task, self._agents, self._on_change = node, task, agents, on_change
        self._folder = node.folder / "tasks" / task.id / f"attempt-{task.attempt:06d}"
        self._child: LineChild[FromTrainer] | None = None
        self._door: Door | None = None
        self._meter = EnergyMeter(node.device, card.uuid)
        self._segment_began_ns = 0
        self._work: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._work = asyncio.create_task(self._live(), name=f"shard {self.task_id} rank {self.rank}")

    async def stop(self) -> None:
        """End the child; files of this attempt are removed, everything committed is in the blob store."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        if self._child is not None:
            await self._child.stop()
        if self._door is not None:
            await self._door.close()
        await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def train(self, order: TrainSegment) -> None:
        """Hand the next segment to the waiting child."""
        assert self.run.stage is Stage.WAITING
        assert self._child is not None
        self.run = ShardRun(self.attempt, Stage.TRAINING, order.segment)
        self._meter.begin()
        self._segment_began_ns = time.time_ns()
        self._log(order.reason)
        await self._child.send(
            RunSegment(segment=order.segment, beacon=order.beacon.hex(), first_step=order.first_step, steps=order.steps)
        )

    async def _live(self) -> None:
        """Everything that can go wrong ends here, as a `failure` with its kind."""
        failed = ChildFailed(kind="internal", message="the trainer ended without a word")
        try:
            with span("shard.start", parent=self._task.trace, task_id=self.task_id, rank=self.rank):
                child = await self._begin()
            async for message in child.messages():
                if isinstance(message, ChildFailed):
                    failed = message
                    break
                await self._heard(message)
            else:
                status = await child.wait()
                failed = ChildFailed(kind="internal", message=f"the trainer ended with status {status}")
        except TalkooError as error:
            failed = ChildFailed(kind=error.code, message=error.message)
        except Exception as error:
            log.exception("%s rank %d stopped by our own fault", self.task_id, self.rank)
            failed = ChildFailed(kind="internal", message=f"{type(error).__name__}: {error}")
        self.failure = failed
        self.samples_per_second = 0.0
        FAILURES.add(kind=failed.kind)
        self._log(f"failed: {failed.message}")
        self._changed(Stage.ENDED)

    async def _begin(self) -> LineChild[FromTrainer]:
        """Start the child while the blobs come; then tell it where to meet."""
        self._node.stage(self.task_id, self.attempt, "fetching", steps=self._task.spec.steps)
        await asyncio.to_thread(self._make_folder)
        self._child = child = await self._node.spare.take()
        child.on_log = self._log
        await fetch_for_task(self._node.blobs, self._task, self._folder)
        self._node.stage(self.task_id, self.attempt, "starting", steps=self._task.spec.steps)
        nodes = {shard.rank: await self._node.ledger.node(shard.node_id) for shard in self._task.shards}
        star = is_star(list(nodes.values()))
        meeting = (self._node.host, 0) if self.rank == 0 else await self._find_rank_0(nodes[0], star)
        settings, device = self._node.settings, self._node.device
        start = start_of(self._task, self.rank, self._folder, settings, device, self.card, meeting, star=star)
        await child.send(start)
        self._node.stage(self.task_id, self.attempt, "rendezvous", steps=self._task.spec.steps)
        return child

    def _make_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    async def _find_rank_0(self, first: state_pb2.Node, star: bool) -> tuple[str, int]:
        """Poll rank 0's agent. Raises Unavailable (code `peer_lost`) after `RENDEZVOUS_TIMEOUT_S`.

        In a star another organization's rank 0 is reached through its agent, so this is a port of our own.
        """
        endpoint = first.endpoint
        request = agent_pb2.RendezvousRequest(task_id=self.task_id, attempt=self.attempt)
        deadline = time.monotonic() + RENDEZVOUS_TIMEOUT_S
        while True:
            try:
                answer = await self._agents.rendezvous(endpoint, request, RENDEZVOUS_CALL_S)
                if not star or first.organization == self._node.settings.organization:
                    return answer.host, answer.port
                self._door = Door(request, functools.partial(self._agents.relay, endpoint))
                self._log(f"meets rank 0 of {first.organization} through its agent at {endpoint}")
                return await self._door.open()
            except (Unavailable, NotFound) as error:
                if time.monotonic() >= deadline:
                    raise Unavailable(
                        f"rank 0 at {endpoint} does not open: {error.message}", code="peer_lost"
                    ) from error
            await asyncio.sleep(RENDEZVOUS_PAUSE_S)

    async def _heard(self, message: FromTrainer) -> None:
        if isinstance(message, Listening):
            self.listening = message
        elif isinstance(message, Ready):
            self._log(f"all {len(self._task.shards)} ranks have met; the model has {message.parameters:,} parameters")
            self._node.stage(self.task_id, self.attempt, "waiting", steps=self._task.spec.steps)
            self._changed(Stage.WAITING)
        elif isinstance(message, Step):
            self.samples_per_second = message.samples_per_second
            STEPS.add()
            self._node.stage(
                self.task_id,
                self.attempt,
                "training",
                step=message.step + 1,
                steps=self._task.spec.steps,
                segment=message.segment,
                loss=message.loss,
                samples_per_second=message.samples_per_second,
            )
        elif isinstance(message, SegmentDone):
            self.samples_per_second = 0.0
            await self._commit(message)

    async def _commit(self, done: SegmentDone) -> None:
        """Blobs first, then the commitment: what the ledger names can be had.

        Raises InvalidInput (code `bad_program`) when the task declares other FLOPs than its program has: nobody is
        paid for what validators find otherwise.
        """
        declared = self._task.spec.flops_per_sample
        if done.flops_per_sample != declared:
            raise InvalidInput(
                f"the task declares {declared:,} FLOP for one sample, its program has {done.flops_per_sample:,}; "
                "submit it again and let the command line count",
                code="bad_program",
            )
        attributes: dict[str, str | int] = {"task_id": self.task_id, "segment": done.segment, "rank": self.rank}
        trace = self._task.trace
        record("shard.segment", self._segment_began_ns, time.time_ns(), parent=trace, **attributes)
        self._changed(Stage.COMMITTING)
        self._node.stage(self.task_id, self.attempt, "committing", steps=self._task.spec.steps, segment=done.segment)
        energy_mj = self._meter.end_mj(done.cpu_seconds)
        with span("segment.upload", parent=trace, **attributes):
            transcript = await self._node.blobs.put_file(Path(done.transcript_path))
            if self.rank == 0:
                await self._node.blobs.put_file(Path(done.params_path))
                await self._node.blobs.put_file(Path(done.optimizer_path))
        message = commitment_of(self.task_id, self.attempt, self.rank, done, transcript, energy_mj)
        with span("segment.commit", parent=trace, **attributes):
            await self._submit(message)
        self._log(f"segment {done.segment} took {done.duration_s:.1f} s, root {done.root[:16]}")
        await asyncio.to_thread(self._remove_old, done.segment)
        self._node.stage(self.task_id, self.attempt, "waiting", steps=self._task.spec.steps, segment=done.segment)
        self._changed(Stage.WAITING)

    async def _submit(self, message: tx_pb2.CommitSegment) -> None:
        """Until the ledger has it or refuses it: a ledger that stands still for a while costs no work."""
        while True:
            try:
                await self._node.ledger.submit(message, memo=self._task.trace)
                SEGMENTS.add()
                return
            except Unavailable as error:
                self._log(f"segment {message.segment} waits for the ledger: {error.message}")
            except Conflict as error:  # it is there already, or the ledger went on without this attempt
                self._log(f"segment {message.segment} is not taken: {error.message}")
                return
            await asyncio.sleep(COMMIT_PAUSE_S)

    def _remove_old(self, segment: int) -> None:
        old = self._folder / "work" / f"segment-{segment - KEPT_SEGMENTS:06d}"
        shutil.rmtree(old, ignore_errors=True)

    def _changed(self, stage: Stage) -> None:
        self.run = ShardRun(self.attempt, stage, self.run.last_segment)
        self._on_change(self.task_id)

    def _log(self, text: str) -> None:
        log.info("%s rank %d: %s", self.task_id, self.rank, text)
        self._node.log_line(self.task_id, self.rank, text)
