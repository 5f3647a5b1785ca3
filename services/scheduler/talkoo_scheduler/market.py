"""One pass' view of nodes, offers and running tasks, where what cannot differ between tasks is worked out once. Pure.

A decision about a task depends on what it asks for, and on the task itself only where it holds shards or a node says
that it works on it. So tasks that ask for the same share one decision; and a task that was found to wait need not be
looked at again before it or the market has changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from talkoo_api.ledger.v1 import state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2

from talkoo_scheduler.policy import Candidate, Decision, Demand, Rules, decide, queue_order
from talkoo_scheduler.view import candidates_for, demand_of, needs_placement, running_on, shards_by_owner, stake_in_use


@dataclass(frozen=True, slots=True)
class Market:
    """What a decision depends on besides its task."""

    nodes: Sequence[state_pb2.Node]
    offers: Mapping[str, scheduler_pb2.Offer]
    holders: Sequence[state_pb2.Task]
    """Live tasks that hold shards."""
    standing: frozenset[str]
    """Of these the ones that stand still: they hold no slot by their record, an agent's offer says whether it works."""
    jailed: frozenset[str]
    """Nodes whose jail is not over."""
    passed_over: Mapping[str, int]
    rules: Rules
    height: int

    def is_as(self, other: Market | None) -> bool:
        """Whether every decision would be the same: the height counts only for jails and for who stands still."""
        return other is not None and replace(self, height=0) == replace(other, height=0)


def market_of(
    nodes: Sequence[state_pb2.Node],
    offers: Mapping[str, scheduler_pb2.Offer],
    live: Sequence[state_pb2.Task],
    passed_over: Mapping[str, int],
    rules: Rules,
    height: int,
    stall_blocks: int,
) -> Market:
    holders = [task for task in live if task.shards]
    return Market(
        nodes=nodes,
        offers=offers,
        holders=holders,
        standing=frozenset(task.id for task in holders if needs_placement(task, height, stall_blocks)),
        jailed=frozenset(node.id for node in nodes if node.jailed and height < node.jailed_until_height),
        passed_over=dict(passed_over),
        rules=rules,
        height=height,
    )


class Decisions:
    """Of one market. Ask for none after a placement: it has changed the market."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._running = running_on(task for task in market.holders if task.id not in market.standing)
        self._used = stake_in_use(market.holders, "", market.rules)
        worked_on = {task_id for offer in market.offers.values() for task_id in offer.running_tasks}
        self._special = worked_on.union(task.id for task in market.holders)
        """Tasks that see the market in their own way."""
        self._made: dict[Demand, tuple[Decision, list[Candidate]]] = {}

    def about(self, task: state_pb2.Task, demand: Demand) -> tuple[Decision, list[Candidate]]:
        """The decision, and the nodes as the task sees them."""
        if task.id in self._special:
            return self._decide(task, demand)
        asked = replace(demand, task_id="", name="", created_height=0, owner_running=0)
        made = self._made.get(asked)
        if made is None:
            made = self._made[asked] = self._decide(task, demand)
        return made

    def _decide(self, task: state_pb2.Task, demand: Demand) -> tuple[Decision, list[Candidate]]:
        market = self._market
        used = stake_in_use(market.holders, task.id, market.rules) if task.shards else self._used
        candidates = candidates_for(task, market.nodes, market.offers, used, self._running, market.passed_over)
        return decide(demand, candidates, market.rules, market.height), candidates


class Demands:
    """What each task asks for, read once from a record that stays as it is."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[state_pb2.Task, Demand]] = {}

    def queue(self, tasks: Iterable[state_pb2.Task], live: Iterable[state_pb2.Task]) -> deque[Demand]:
        """Who is served first; `live`: all tasks that may hold shards."""
        held = shards_by_owner(live)
        return deque(queue_order([self._of(task, held) for task in tasks]))

    def keep(self, task_ids: Container[str]) -> None:
        """The others have ended."""
        for gone in [task_id for task_id in self._read if task_id not in task_ids]:
            del self._read[gone]

    def _of(self, task: state_pb2.Task, held: Mapping[str, int]) -> Demand:
        known = self._read.get(task.id)
        if known is None or known[0] is not task:
            known = self._read[task.id] = task, demand_of(task, {})
        running = held.get(task.owner, 0) - len(task.shards)
        return known[1] if known[1].owner_running == running else replace(known[1], owner_running=running)


class Waits:
    """Tasks that were found to wait, and the market in which they were."""

    def __init__(self) -> None:
        self._market: Market | None = None
        self._tasks: dict[str, state_pb2.Task] = {}

    def forget(self) -> None:
        self._market = None
        self._tasks.clear()

    def enter(self, market: Market) -> None:
        """What was found in another market does not count any more."""
        if not market.is_as(self._market):
            self._tasks.clear()
        self._market = market

    def add(self, task: state_pb2.Task) -> None:
        self._tasks[task.id] = task

    def keep(self, task_ids: Container[str]) -> None:
        """The others wait no more."""
        for gone in [task_id for task_id in self._tasks if task_id not in task_ids]:
            del self._tasks[gone]

    def knows(self, task: state_pb2.Task) -> bool:
        """It waits in this market, and is as it was."""
        known = self._tasks.get(task.id)
        return known is not None and (known is task or known == task)
