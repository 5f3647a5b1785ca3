"""Which gang gets a task, or why it waits. Pure: the height, the market and the task in; a decision with reasons out.

The objective is tokens times seconds: for each size a task allows, the gang with the most speed per price is formed,
and of these the one with the least (price of the work) times (time of the work) is taken; a tie goes to the smaller
gang. A step's time is the global batch's work over the summed speed, because every rank's share is in proportion to its
speed.

A gang of several organizations needs a rank 0 that the others can dial, as all its ranks meet there: where some of its
nodes only dial out, one that does not gets rank 0, and one that does not is in the gang.

The small lane: a node that fits and was passed over `LANE_AFTER` placements in a row takes the last place of the next
gang of three or more, however small it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from talkoo_core.amounts import PPM, format_tlk, split_by_weight

LANE_AFTER = 3
LANE_MIN_GANG = 3
MAX_NAMED = 8
"""Nodes that a waiting task's one line names; the decision itself holds a reason for every node."""
MIB = 1024 * 1024
GFLOP = 10**9


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as the ledger and its live offer describe it. `offered` is false when no offer of it lives."""

    node_id: str
    name: str
    organization: str
    offered: bool
    state: str
    state_reason: str
    memory_bytes: int
    speed_flops: int
    price_utlk_per_gflop: int
    stake_utlk: int
    stake_in_use_utlk: int = 0
    jailed_until_height: int | None = None
    hardware_class: str = ""
    passed_over: int = 0
    """Placements in a row that took others although this node fitted."""
    outbound_only: bool = False
    """It dials nodes of other organizations; they cannot dial it."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task asks for."""

    task_id: str
    name: str
    owner: str
    min_nodes: int
    max_nodes: int
    memory_bytes: int
    price_utlk_per_gflop: int
    global_batch: int
    steps_per_segment: int
    flops_per_sample: int
    audit_rate_ppm: int
    created_height: int
    banned: frozenset[str] = frozenset()
    owner_running: int = 0
    """Shards the owner's other tasks hold: who holds less is served first."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The ledger's parameters that bind a placement."""

    slash_ppm: int
    audit_floor_ppm: int
    min_node_stake_utlk: int


@dataclass(frozen=True, slots=True)
class PlannedShard:
    node_id: str
    rank: int
    samples: int
    price_utlk_per_gflop: int


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """Whether one node fits one task. `code` is stable and stands in docs/scheduling.md; empty when it fits."""

    node_id: str
    name: str
    fits: bool
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """`shards` is empty when the task waits. `reason` is one line for a person."""

    shards: tuple[PlannedShard, ...]
    reason: str
    nodes: tuple[NodeVerdict, ...] = field(default=())


REASONS = {
    "no_offer": "the node's agent does not offer it now",
    "busy": "all its slots are taken",
    "draining": "it takes no new work",
    "jailed": "it was found forging",
    "banned": "it forged in this very task",
    "too_small": "it has less memory than the task asks for",
    "too_expensive": "it works for more than the task pays",
    "stake_too_small": "its stake would not make forging lose money",
    "not_measured": "its speed is not known yet",
    "outbound_only": "no node that fits can be dialled by it and the others",
}


TOO_FEW = "too_few_nodes"
"""Why a task waits when every node fits and there are fewer than it asks for."""


def waits_for(decision: Decision) -> str:
    """Of `REASONS` the one that most nodes were left out for, the first of these; or `TOO_FEW`."""
    codes = [verdict.code for verdict in decision.nodes if not verdict.fits]
    return max(REASONS, key=codes.count) if codes else TOO_FEW


def queue_order(demands: Sequence[Demand]) -> list[Demand]:
    """Who is served first: the owner that holds the fewest shards (dominant share), then the older task."""
    return sorted(demands, key=lambda d: (d.owner_running, d.created_height, d.task_id))


def decide(demand: Demand, candidates: Sequence[Candidate], rules: Rules, height: int) -> Decision:
    """Place the whole gang or nothing."""
    ordered = sorted(candidates, key=lambda c: c.node_id)
    verdicts = tuple(_judge(demand, candidate, rules, height) for candidate in ordered)
    fitting = [c for c, verdict in zip(ordered, verdicts, strict=True) if verdict.fits]
    if len(fitting) < demand.min_nodes:
        return Decision((), _waits(demand, verdicts, len(fitting)), verdicts)
    gang, weak = _form_gang(demand, fitting, rules)
    verdicts = tuple(weak.get(verdict.node_id, verdict) for verdict in verdicts)
    if not gang:
        return Decision((), _waits(demand, verdicts, sum(verdict.fits for verdict in verdicts)), verdicts)
    samples = _split(demand.global_batch, gang)
    shards = tuple(
        PlannedShard(c.node_id, rank, share, c.price_utlk_per_gflop)
        for rank, (c, share) in enumerate(zip(gang, samples, strict=True))
    )
    return Decision(shards, _placed(demand, gang, samples), verdicts)


def _judge(demand: Demand, node: Candidate, rules: Rules, height: int) -> NodeVerdict:
    def no(code: str, reason: str) -> NodeVerdict:
        return NodeVerdict(node.node_id, node.name, False, code, f"{node.name} {reason}")

    if node.node_id in demand.banned:
        return no("banned", "forged in this task and is not placed in it again")
    if node.jailed_until_height is not None:
        if height < node.jailed_until_height:
            return no("jailed", f"is jailed for forging until block {node.jailed_until_height}")
        return no("jailed", "was jailed for forging; its time is over, it works again once stake is bonded to it")
    if not node.offered:
        return no("no_offer", "does not offer itself here; is its agent running?")
    if node.state == "draining":
        return no("draining", f"takes no new work ({node.state_reason or 'draining'})")
    if node.state != "ready":
        return no("busy", f"is busy ({node.state_reason or 'all slots are taken'})")
    if node.speed_flops <= 0:
        return no("not_measured", "has not measured its speed yet")
    if node.memory_bytes < demand.memory_bytes:
        return no("too_small", f"has {node.memory_bytes // MIB} MiB of {demand.memory_bytes // MIB} MiB")
    if node.price_utlk_per_gflop > demand.price_utlk_per_gflop:
        return no("too_expensive", f"asks for {format_tlk(node.price_utlk_per_gflop)} per GFLOP")
    if node.stake_utlk < rules.min_node_stake_utlk:
        return no("stake_too_small", f"has a stake of only {format_tlk(node.stake_utlk)}")
    return NodeVerdict(node.node_id, node.name, True, "", f"{node.name} fits")


def stake_needed_utlk(demand: Demand, samples: int, price_utlk_per_gflop: int, rules: Rules) -> int:
    """Stake at which forging loses money (DESIGN, decision 4): stake × slash ≥ pay × (1 − p) / p, rounded up."""
    flops = samples * demand.steps_per_segment * demand.flops_per_sample
    pay = flops * price_utlk_per_gflop // GFLOP
    rate = max(demand.audit_rate_ppm, rules.audit_floor_ppm)
    return -(-pay * (PPM - rate) * PPM // (rate * rules.slash_ppm))


def _form_gang(
    demand: Demand, fitting: list[Candidate], rules: Rules
) -> tuple[list[Candidate], dict[str, NodeVerdict]]:
    """The gang with the least tokens × seconds over all sizes, and the verdicts on nodes left out for their stake.

    Without any gang the verdicts are those of the largest size tried, where the shares are smallest.
    """
    by_value = sorted(fitting, key=lambda c: (-c.speed_flops / max(c.price_utlk_per_gflop, 1), c.node_id))
    best: list[Candidate] = []
    best_weak: dict[str, NodeVerdict] = {}
    largest_weak: dict[str, NodeVerdict] = {}
    for size in range(demand.min_nodes, min(demand.max_nodes, len(by_value), demand.global_batch) + 1):
        gang, largest_weak = _gang_of(size, demand, by_value, rules)
        if gang and (not best or _tokens_times_seconds(gang) < _tokens_times_seconds(best)):
            best, best_weak = gang, largest_weak
    if not best:
        return [], largest_weak
    return _with_lane(demand, best, by_value, rules), best_weak


def _gang_of(
    size: int, demand: Demand, by_value: list[Candidate], rules: Rules
) -> tuple[list[Candidate], dict[str, NodeVerdict]]:
    """The first `size` nodes that can meet and whose stakes cover their shares, or an empty gang; and who was left out
    on the way.
    """
    left = list(by_value)
    weak: dict[str, NodeVerdict] = {}
    while len(left) >= size:
        gang = _first_that_meet(left, size)
        if not gang:
            return [], weak | {node.node_id: _cut_off(node) for node in left}
        short = _short_of_stake(demand, gang, rules)
        if not short:
            return gang, weak
        # The one with the least free stake goes: the others' shares grow, so each is looked at again.
        worst = min(short, key=lambda pair: (pair[0].stake_utlk - pair[0].stake_in_use_utlk, pair[0].node_id))
        weak[worst[0].node_id] = _too_weak(*worst)
        left.remove(worst[0])
    return [], weak


def _first_that_meet(left: list[Candidate], size: int) -> list[Candidate]:
    """The first `size`; where they cannot meet, the best gang that can. Empty when there is none.

    They cannot when all only dial out and are of several organizations. Then the last place goes to the first that can
    be dialled, or the gang is of one organization.
    """
    if _can_meet(left[:size]):
        return _dialled_first(left[:size])
    gangs = [[node, *left[: size - 1]] for node in left[size:] if not node.outbound_only][:1]
    for organization in sorted({node.organization for node in left}):
        own = [node for node in left if node.organization == organization][:size]
        gangs += [own] if len(own) == size else []
    return min(gangs, key=_tokens_times_seconds, default=[])


def _can_meet(gang: Sequence[Candidate]) -> bool:
    return _of_one_organization(gang) or not all(node.outbound_only for node in gang)


def _dialled_first(gang: list[Candidate]) -> list[Candidate]:
    """Rank 0 is where the others dial: a node that they can reach takes it."""
    if _of_one_organization(gang):
        return gang
    first = next(node for node in gang if not node.outbound_only)
    return [first, *(node for node in gang if node is not first)]


def _of_one_organization(gang: Sequence[Candidate]) -> bool:
    return len({node.organization for node in gang}) == 1


def _cut_off(node: Candidate) -> NodeVerdict:
    reason = f"{node.name} only dials out, and so do all nodes of other organizations that fit"
    return NodeVerdict(node.node_id, node.name, False, "outbound_only", reason)


def _short_of_stake(demand: Demand, gang: list[Candidate], rules: Rules) -> list[tuple[Candidate, int]]:
    """Members whose free stake is below what their share needs, each with that need in utlk."""
    needs = [
        (node, stake_needed_utlk(demand, share, node.price_utlk_per_gflop, rules))
        for node, share in zip(gang, _split(demand.global_batch, gang), strict=True)
    ]
    return [(node, needed) for node, needed in needs if node.stake_utlk - node.stake_in_use_utlk < needed]


def _too_weak(node: Candidate, needed_utlk: int) -> NodeVerdict:
    free = max(node.stake_utlk - node.stake_in_use_utlk, 0)
    reason = f"{node.name} has {format_tlk(free)} of free stake; its share needs {format_tlk(needed_utlk)}"
    return NodeVerdict(node.node_id, node.name, False, "stake_too_small", reason)


def _with_lane(demand: Demand, gang: list[Candidate], by_value: list[Candidate], rules: Rules) -> list[Candidate]:
    """The small lane: the last place goes to whoever was passed over most, if the stakes still cover the shares."""
    chosen = {c.node_id for c in gang}
    waiting = [c for c in by_value if c.passed_over >= LANE_AFTER and c.node_id not in chosen]
    if not waiting or len(gang) < LANE_MIN_GANG:
        return gang
    changed = [*gang[:-1], max(waiting, key=lambda c: (c.passed_over, c.node_id))]
    if not _can_meet(changed) or _short_of_stake(demand, changed, rules):
        return gang
    return _dialled_first(changed)


def _tokens_times_seconds(gang: Sequence[Candidate]) -> float:
    """Up to a factor that all gangs of one task share: Σ speed·price / Σ speed tokens, 1 / Σ speed seconds."""
    speed = sum(c.speed_flops for c in gang)
    price = sum(c.speed_flops * max(c.price_utlk_per_gflop, 1) for c in gang) / speed
    return price / speed


def _split(batch: int, gang: Sequence[Candidate]) -> list[int]:
    """Samples of each rank in proportion to speed, by largest remainder, at least one for each."""
    parts = split_by_weight(batch - len(gang), [c.speed_flops for c in gang])
    return [part + 1 for part in parts]


def _placed(demand: Demand, gang: Sequence[Candidate], samples: Sequence[int]) -> str:
    speed = sum(c.speed_flops for c in gang)
    seconds = demand.global_batch * demand.flops_per_sample / speed
    tokens = sum(
        share * demand.flops_per_sample * c.price_utlk_per_gflop // GFLOP
        for c, share in zip(gang, samples, strict=True)
    )
    shares = ", ".join(f"{c.name} {share}" for c, share in zip(gang, samples, strict=True))
    return (
        f"placed on {len(gang)} nodes, samples of each batch: {shares}; about {seconds * 1000:.1f} ms and "
        f"{format_tlk(tokens)} a step"
    )


def _waits(demand: Demand, verdicts: Sequence[NodeVerdict], fits: int) -> str:
    asked = (
        f"needs {demand.min_nodes} nodes with {demand.memory_bytes // MIB} MiB at "
        f"{format_tlk(demand.price_utlk_per_gflop)} per GFLOP or less; {fits} fit"
    )
    others = [verdict.reason for verdict in verdicts if not verdict.fits]
    if len(others) > MAX_NAMED:
        others = [*others[:MAX_NAMED], f"and {len(others) - MAX_NAMED} more nodes do not fit"]
    if not verdicts:
        others = ["no node is registered"]
    return "; ".join((f"waits: {asked}", *others))
