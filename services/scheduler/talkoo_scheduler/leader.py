"""The elected leader's work: watch the ledger and the market, place what can be placed, say why the rest waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from talkoo_api.ledger.v1 import service_pb2, state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2

from talkoo_core.errors import Conflict, TalkooError, Unavailable
from talkoo_runtime.clock import Clock
from talkoo_runtime.etcd import EtcdStore
from talkoo_runtime.ledger_client import LedgerClient
from talkoo_runtime.telemetry import span
from talkoo_scheduler.keys import Keys, StoredDecision, StoredReason, StoredReport, explanation_of
from talkoo_scheduler.market import Decisions, Demands, Waits, market_of
from talkoo_scheduler.metrics import DECISION_SECONDS, LEADER, PLACED, REFUSED, WaitingTasks
from talkoo_scheduler.policy import Candidate, Decision, waits_for
from talkoo_scheduler.view import ENDED, needs_placement, phase_sentence, place_message, rules_of

log = logging.getLogger(__name__)
TICK_S = 0.5
SUBMIT_TIMEOUT_S = 10.0
REFUSED_BY_LEDGER = "refused_by_ledger"
"""Why a task waits whose placement was decided, in the metric beside the policy's own reasons."""
WORDS_AT_ONCE = 64
"""Written to etcd in one transaction."""
MAX_REASONS = 2_000
"""Nodes of which a task's explanation speaks, those that fit first: etcd takes no value of more than 1.5 MiB."""
REFUSED_FIRST_S = 1.0
REFUSED_MAX_S = 30.0
"""A refused placement costs its fee: the same task is tried again after pauses that double up to this."""


class Desk:
    """Tasks as the ledger has them, kept fresh by its events. Every scheduler has one, leader or not."""

    def __init__(self, ledger: LedgerClient) -> None:
        self.tasks: dict[str, state_pb2.Task] = {}
        self.height = 0
        self.shards_changed = 0
        """Counts up whenever a task that holds shards, or held some, was read anew."""
        self.changed = asyncio.Event()
        self._ledger = ledger

    async def follow(self) -> None:
        """Forever. The first reading comes before the first event, so none is missed."""
        self.height = (await self._ledger.status()).height
        tasks = await self._ledger.list("tasks", state_pb2.Task)
        # A second reading replaces the first: what ended while nobody followed is gone.
        self.tasks = {task.id: task for task in tasks if task.phase not in ENDED}
        self.shards_changed += 1
        self.changed.set()
        async for block in self._ledger.follow(self.height + 1):
            await self._take(block)

    async def _take(self, block: service_pb2.BlockEvents) -> None:
        self.height = block.height
        touched = {event.subject for event in block.events if event.subject.startswith("task-")}
        for task_id in touched:
            await self.look_again(task_id)
        if touched or block.events:
            self.changed.set()

    async def look_again(self, task_id: str) -> None:
        """Read one task anew; one that has ended is not kept."""
        task = await self._ledger.task(task_id)
        known = self.tasks.get(task_id)
        if task.shards or (known is not None and known.shards):
            self.shards_changed += 1
        if task.phase in ENDED:
            self.tasks.pop(task_id, None)
        else:
            self.tasks[task_id] = task


@dataclass(slots=True)
class Pause:
    """After a refusal: no other try before `until_s`."""

    attempt: int
    length_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Word:
    """What is said of a task."""

    task: state_pb2.Task
    summary: str
    decision: Decision

    def stored(self, now_ns: int, organization: str) -> bytes:
        nodes = sorted(self.decision.nodes, key=lambda verdict: not verdict.fits)[:MAX_REASONS]
        return msgspec.json.encode(
            StoredDecision(
                task_id=self.task.id,
                summary=self.summary,
                nodes=[StoredReason(v.node_id, v.name, v.fits, v.code, v.reason) for v in nodes],
                decided_at_ns=now_ns,
                leader=organization,
            )
        )


class Leader:
    """Places tasks while its organization's scheduler leads."""

    def __init__(
        self, ledger: LedgerClient, store: EtcdStore, keys: Keys, desk: Desk, organization: str, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._keys = keys
        self._desk = desk
        self._organization = organization
        self._clock = clock
        self._passed_over: dict[str, int] = {}
        self._said: dict[str, str] = {}
        self._pauses: dict[str, Pause] = {}
        self._waiting = WaitingTasks()
        self._demands, self._waits = Demands(), Waits()

    async def lead(self, lost: asyncio.Event) -> None:
        """Until the leadership is lost. Raises Unavailable when etcd or the ledger cannot be reached."""
        log.info("leads")
        said = await self._store.keys(self._keys.decisions)  # many tasks' reasons do not fit into an answer of etcd
        # Empty: another leader may have said something else since, and its ended tasks are to be forgotten too.
        self._said = dict.fromkeys((key.removeprefix(self._keys.decisions) for key in said), "")
        self._pauses.clear()
        self._waits.forget()
        LEADER.set(1)
        try:
            while not lost.is_set():
                self._desk.changed.clear()
                await self._pass(lost)
                await self._pause(lost)
        finally:
            LEADER.set(0)
            self._waiting.keep(())
        log.info("leads no more")

    async def _pause(self, lost: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(self._desk.changed.wait()), asyncio.ensure_future(lost.wait())]
        await asyncio.wait(waits, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def _pass(self, lost: asyncio.Event) -> None:
        """Look at each task that wants a placement, the one served first first; after each placement sort anew."""
        # Cut off from its ledger node a leader hears of no task and would hold up all organizations in silence.
        await self._ledger.status()
        await self._forget_ended()
        params = await self._ledger.params()
        desk = self._desk
        left = {t.id: t for t in desk.tasks.values() if needs_placement(t, desk.height, params.stall_blocks)}
        self._waiting.keep(left)
        if not left:
            return
        nodes = await self._ledger.list("nodes", state_pb2.Node)
        offers = await read_offers(self._store, self._keys)

        def decisions() -> Decisions:
            live = list(desk.tasks.values())
            market = market_of(
                nodes, offers, live, self._passed_over, rules_of(params), desk.height, params.stall_blocks
            )
            self._waits.enter(market)
            return Decisions(market)

        made, made_at = decisions(), desk.shards_changed
        if all(self._waits.knows(task) for task in left.values()):
            return
        queue = self._demands.queue(left.values(), desk.tasks.values())
        found: list[tuple[state_pb2.Task, Decision]] = []
        while queue and not lost.is_set():
            demand = queue.popleft()
            task = left.pop(demand.task_id)
            if made_at != desk.shards_changed or len(found) >= WORDS_AT_ONCE:
                await self._say_waits(found)
            if made_at != desk.shards_changed:
                made, made_at = decisions(), desk.shards_changed
            if self._waits.knows(task):
                continue
            began = time.monotonic()
            decision, candidates = made.about(task, demand)
            DECISION_SECONDS.observe(time.monotonic() - began)
            if not decision.shards:
                self._waiting.waits(task.id, waits_for(decision))
                found.append((task, decision))
            elif self._may_try(task):
                await self._say_waits(found)
                if await self._place(task, decision, candidates):
                    made, made_at = decisions(), desk.shards_changed
                    queue = self._demands.queue(left.values(), desk.tasks.values())
        await self._say_waits(found)

    async def _say_waits(self, found: list[tuple[state_pb2.Task, Decision]]) -> None:
        """All at once; `found` is empty then."""
        await self._say({task.id: Word(task, decision.reason, decision) for task, decision in found})
        for task, _ in found:
            self._waits.add(task)
        found.clear()

    async def _forget_ended(self) -> None:
        """Drop what was said and reported of ended tasks, so that neither memory nor etcd grows with history."""
        if not self._desk.height:
            return  # nothing was read yet
        ended = self._said.keys() - self._desk.tasks.keys()
        await self._store.delete_all(
            *(key(task_id) for task_id in ended for key in (self._keys.decision, self._keys.report))
        )
        for task_id in ended:
            del self._said[task_id]
        self._demands.keep(self._desk.tasks)
        self._waits.keep(self._desk.tasks)
        self._pauses = {task_id: pause for task_id, pause in self._pauses.items() if task_id in self._desk.tasks}

    def _may_try(self, task: state_pb2.Task) -> bool:
        pause = self._pauses.get(task.id)
        return pause is None or pause.attempt != task.attempt or _now_s() >= pause.until_s

    def _pause_after_refusal(self, task: state_pb2.Task) -> None:
        last = self._pauses.get(task.id)
        again = last is not None and last.attempt == task.attempt
        length_s = min(last.length_s * 2, REFUSED_MAX_S) if last is not None and again else REFUSED_FIRST_S
        self._pauses[task.id] = Pause(task.attempt, length_s, _now_s() + length_s)

    async def _place(self, task: state_pb2.Task, decision: Decision, candidates: list[Candidate]) -> bool:
        """Send the placement; whether it stands. A refusal becomes the reason that people read."""
        with span("task.place", parent=task.trace, task=task.id, attempt=task.attempt + 1):
            try:
                await self._ledger.submit(
                    place_message(task, decision.shards, decision.reason), timeout_s=SUBMIT_TIMEOUT_S
                )
            except TalkooError as error:
                await self._refused(task, decision, error)
                return False
        PLACED.add()
        await self._desk.look_again(task.id)
        self._pauses.pop(task.id, None)
        self._count_passed_over(decision, candidates)
        await self._say_of(task, decision.reason, decision)
        return True

    async def _refused(self, task: state_pb2.Task, decision: Decision, error: TalkooError) -> None:
        """Say why and wait a while. Raises Unavailable when our ledger node is away: another one then leads."""
        self._pause_after_refusal(task)
        REFUSED.add(family=error.family)
        self._waiting.waits(task.id, REFUSED_BY_LEDGER)
        if isinstance(error, Unavailable) and error.code != "not_final_yet":
            raise error
        if isinstance(error, Unavailable):
            await self._say_of(task, "waits: the ledger has not decided on its placement yet", decision)
        elif not (isinstance(error, Conflict) and error.code == "wrong_attempt"):
            # A wrong attempt is somebody else's success.
            await self._say_of(task, f"waits: the ledger refused the placement: {error.message}", decision)
        await self._desk.look_again(task.id)

    def _count_passed_over(self, decision: Decision, candidates: list[Candidate]) -> None:
        chosen = {shard.node_id for shard in decision.shards}
        fitted = {verdict.node_id for verdict in decision.nodes if verdict.fits}
        for candidate in candidates:
            if candidate.node_id in chosen:
                self._passed_over[candidate.node_id] = 0
            elif candidate.node_id in fitted:
                self._passed_over[candidate.node_id] = self._passed_over.get(candidate.node_id, 0) + 1

    async def _say(self, words: Mapping[str, Word]) -> None:
        """Write decisions for whoever asks, by task; only new ones are written and logged."""
        new = {task_id: word for task_id, word in words.items() if self._said.get(task_id) != word.summary}
        if not new:
            return
        now_ns = self._clock.now_ns()
        stored = {self._keys.decision(i): word.stored(now_ns, self._organization) for i, word in new.items()}
        await self._store.put_all(stored)
        for task_id, word in new.items():  # only now: a word that etcd did not take is said again
            self._said[task_id] = word.summary
            log.info("%s (%s) %s", task_id, word.task.spec.name, word.summary)

    async def _say_of(self, task: state_pb2.Task, summary: str, decision: Decision) -> None:
        await self._say({task.id: Word(task, summary, decision)})


def _now_s() -> float:
    """Seconds of the loop's own clock, which never goes back."""
    return asyncio.get_running_loop().time()


async def read_offers(store: EtcdStore, keys: Keys) -> dict[str, scheduler_pb2.Offer]:
    """Live offers by node id: those of agents here, and those that other clusters share."""
    shared, here = await store.list(keys.shared), await store.list(keys.offers)
    return {
        key.rpartition("/")[2]: scheduler_pb2.Offer.FromString(value.data) for key, value in (shared | here).items()
    }


async def read_own_offers(store: EtcdStore, keys: Keys, organization: str) -> list[scheduler_pb2.Offer]:
    """Live offers of an organization's agents here; what others share is theirs to tell."""
    offers = (scheduler_pb2.Offer.FromString(value.data) for value in (await store.list(keys.offers)).values())
    return [offer for offer in offers if offer.organization == organization]


async def explain(
    ledger: LedgerClient, store: EtcdStore, keys: Keys, task_id: str, shares_with: Sequence[str] = ()
) -> scheduler_pb2.Explanation:
    """From the ledger where it knows, from the leader's last word where the task waits. Raises NotFound.

    `shares_with`: schedulers that know of these nodes and others, and may place the task though the leader here cannot.
    """
    task = await ledger.task(task_id)
    decided, reported = keys.decision(task_id), keys.report(task_id)
    known = await store.get_all(keys.leader, decided, reported)
    found = (
        explanation_of(msgspec.json.decode(known[decided].data, type=StoredDecision))
        if decided in known
        else scheduler_pb2.Explanation(task_id=task_id, summary="waits: no scheduler has looked at it yet")
    )
    found.task.CopyFrom(task)
    found.leader = known[keys.leader].data.decode() if keys.leader in known else ""
    sentence = phase_sentence(task)
    if sentence:
        found.summary = sentence
    elif not found.leader:
        found.summary = "waits: no scheduler leads at the moment; a new one is elected within seconds"
    if not sentence and shares_with:
        found.summary += f"; that is what this cluster knows, {', '.join(shares_with)} knows more and may place it"
    # Before its first placement no node can have reported anything.
    if reported in known and task.attempt and task.phase not in ENDED:
        last = msgspec.json.decode(known[reported].data, type=StoredReport)
        found.summary += f"; last trouble, attempt {last.attempt}: {last.node}: {last.kind}: {last.message}"
    return found
