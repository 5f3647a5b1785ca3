"""What a seed draws: who lies and how, how the network, the clocks and the disks fail, and until when."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

OVER_EVERY = 8
"""Of so many seeds one gives liars a third of the power or more: then a fork may happen, and must be accounted for."""
REAL_KEYS_EVERY = 16
"""Of so many seeds one signs with Ed25519 itself."""
MAX_PARTITIONS = 3


class Lie(Enum):
    """What a Byzantine validator does; each draws some of these."""

    EQUIVOCATE = "equivocate"
    AMNESIA = "amnesia"
    WITHHOLD_VOTES = "withhold_votes"
    WITHHOLD_BLOCKS = "withhold_blocks"
    WITHHOLD_COMMITS = "withhold_commits"
    FORGED_COMMITS = "forged_commits"
    GARBAGE = "garbage"
    SELECTIVE = "selective"
    RUSH = "rush"
    TWIN = "twin"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Partition:
    """From `start_ms` to `end_ms` nothing goes from `sources` to `targets` (nodes by index)."""

    start_ms: int
    end_ms: int
    sources: frozenset[int]
    targets: frozenset[int]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Times in simulated milliseconds. Node i < `validators` holds key i; further nodes are the twins' other copies.

    `lies` by validator. `condemned`: an honest validator whose disk is damaged at a restart, -1: none; it counts
    against the liars' share because it never comes back. `over`: liars hold a third or more.
    """

    seed: int
    validators: int
    heights: int
    powers: tuple[int, ...]
    lies: dict[int, frozenset[Lie]]
    condemned: int
    over: bool
    real_keys: bool
    calm_at_ms: int
    delay_ms: tuple[int, int]
    calm_delay_ms: tuple[int, int]
    loss: float
    duplicate: float
    in_order: bool
    crash: float
    down_ms: tuple[int, int]
    skew_ms: int
    drift_ppm: int
    partitions: tuple[Partition, ...]
    power_changes: float

    @property
    def twins(self) -> tuple[int, ...]:
        return tuple(index for index, lies in sorted(self.lies.items()) if Lie.TWIN in lies)

    @classmethod
    def draw(cls, seed: int, validators: int = 4, heights: int = 3) -> Scenario:
        dice = random.Random(seed * 1_009 + validators)  # noqa: S311 - repeatable by design
        powers = _powers(dice, validators)
        over = seed % OVER_EVERY == OVER_EVERY - 1
        faulty = _too_many(dice, powers) if over else _faulty(dice, powers)
        condemned = faulty.pop() if faulty and not over and dice.random() < 0.2 else -1
        plot = frozenset({dice.choice((Lie.TWIN, Lie.TWIN, Lie.EQUIVOCATE, Lie.EQUIVOCATE, Lie.AMNESIA))})
        lies = {index: plot if over else _lies(dice) for index in sorted(faulty)}
        calm_at_ms = dice.choice((0, 2_000, 5_000, 10_000)) if not over else 20_000
        nodes = validators + sum(Lie.TWIN in each for each in lies.values())
        stormy = calm_at_ms > 0
        return cls(
            seed=seed,
            validators=validators,
            heights=heights,
            powers=powers,
            lies=lies,
            condemned=condemned,
            over=over,
            real_keys=seed % REAL_KEYS_EVERY == 0,
            calm_at_ms=calm_at_ms,
            delay_ms=(1, dice.choice((20, 200, 1_000, 4_000))),
            calm_delay_ms=(1, dice.choice((10, 100, 300))),
            loss=dice.choice((0.0, 0.05, 0.3)) if stormy else 0.0,
            duplicate=dice.choice((0.0, 0.1)),
            in_order=dice.random() < 0.5,
            crash=dice.choice((0.0, 0.002, 0.01)) if stormy else 0.0,
            down_ms=(10, dice.choice((200, 3_000))),
            skew_ms=dice.choice((0, 200, 200, 3_000)),
            drift_ppm=dice.choice((0, 500, 20_000)),
            partitions=_partitions(dice, nodes, powers, lies, calm_at_ms, over=over),
            power_changes=dice.choice((0.0, 0.3, 0.6)) if not over else 0.0,
        )


def _powers(dice: random.Random, validators: int) -> tuple[int, ...]:
    kind = dice.randrange(4)
    if kind <= 1:
        return (10,) * validators
    if kind == 2:
        return tuple(dice.randint(1, 100) for _ in range(validators))
    return (*(dice.randint(5, 15) for _ in range(validators - 1)), 8 * validators)


def _faulty(dice: random.Random, powers: tuple[int, ...]) -> list[int]:
    """Validators that together hold less than a third."""
    order = list(range(len(powers)))
    dice.shuffle(order)
    total, share, chosen = sum(powers), 0, list[int]()
    wanted = dice.randint(0, (len(powers) - 1) // 3)
    for index in order:
        if len(chosen) < wanted and 3 * (share + powers[index]) < total:
            chosen.append(index)
            share += powers[index]
    return chosen


def _too_many(dice: random.Random, powers: tuple[int, ...]) -> list[int]:
    """As few as can make two sides of the rest both decide: a third of the power, or somewhat more."""
    order = list(range(len(powers)))
    dice.shuffle(order)
    for count in range(1, len(powers) - 1):
        chosen = order[:count]
        share = sum(powers[index] for index in chosen)
        lighter = min(sum(powers[index] for index in side) for side in _halves(powers, order[count:]))
        if 3 * (share + lighter) > 2 * sum(powers):
            return chosen
    return order[:-2]


def _halves(powers: tuple[int, ...], honest: list[int]) -> tuple[list[int], list[int]]:
    """Of about the same power, neither empty."""
    one, other = list[int](), list[int]()
    for index in sorted(honest, key=lambda index: -powers[index]):
        lighter = one if sum(powers[i] for i in one) <= sum(powers[i] for i in other) else other
        lighter.append(index)
    return one, other


def _lies(dice: random.Random) -> frozenset[Lie]:
    if dice.random() < 0.2:
        return frozenset({dice.choice((Lie.TWIN, Lie.SILENT))})
    free = [lie for lie in Lie if lie not in (Lie.TWIN, Lie.SILENT)]
    return frozenset(dice.sample(free, dice.randint(1, 3)))


def _partitions(
    dice: random.Random,
    nodes: int,
    powers: tuple[int, ...],
    lies: dict[int, frozenset[Lie]],
    calm_at_ms: int,
    *,
    over: bool,
) -> tuple[Partition, ...]:
    if over:
        return _split_brain(nodes, powers, lies, calm_at_ms)
    found: list[Partition] = []
    for _ in range(dice.randint(0, MAX_PARTITIONS) if calm_at_ms else 0):
        start = dice.randint(0, calm_at_ms)
        end = dice.randint(start, calm_at_ms)
        size = dice.choice((1, nodes // 2, dice.randint(1, nodes - 1)))
        group = frozenset(dice.sample(range(nodes), size))
        rest = frozenset(range(nodes)) - group
        ways = dice.choice((((group, rest), (rest, group)), ((group, rest),), ((rest, group),)))
        found += [Partition(start, end, sources, targets) for sources, targets in ways]
    return tuple(found)


def _split_brain(
    nodes: int, powers: tuple[int, ...], lies: dict[int, frozenset[Lie]], calm_at_ms: int
) -> tuple[Partition, ...]:
    """The honest validators in two halves that do not hear each other; liars hear both, a twin's copies one each."""
    halves = _halves(powers, [index for index in range(len(powers)) if index not in lies])
    twins = [index for index, each in sorted(lies.items()) if Lie.TWIN in each]
    one = frozenset((*halves[0], *twins))
    other = frozenset((*halves[1], *range(nodes - len(twins), nodes)))
    return (Partition(0, calm_at_ms, one, other), Partition(0, calm_at_ms, other, one))
