"""Seeds, one after the other or on several cores: what came out of each, and how to run a broken one again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from talkoo_sim.consensus.judge import Forked, InvariantBroken
from talkoo_sim.consensus.planted import planted
from talkoo_sim.consensus.scenario import Scenario
from talkoo_sim.consensus.signatures import simulated
from talkoo_sim.consensus.world import World

CHUNK = 8
"""Seeds given to a process at once."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`trace` is the hash of every event: equal seeds give equal traces. `broken`: "" or what, with the last events.

    `fork_height` and `accused_power`: 0 where there was no fork. Times in simulated milliseconds.
    """

    seed: int
    validators: int
    trace: str
    broken: str
    events: int
    simulated_ms: int
    after_calm_ms: int
    heights: int
    most_rounds: int
    crashes: int
    crash_places: tuple[str, ...]
    lost: int
    blames: int
    accused: int
    unlocked_prevotes: int
    fork_height: int
    accused_power: int

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def run_seed(seed: int, validators: int = 4, heights: int = 3, plant: str = "") -> Outcome:
    """Never raises for what the seed shows; look at `broken`."""
    return run_scenario(Scenario.draw(seed, validators, heights), plant)


def run_scenario(scenario: Scenario, plant: str = "") -> Outcome:
    with ExitStack() as stack:
        stack.enter_context(simulated(real=scenario.real_keys))
        stack.enter_context(planted(plant))
        world = World(scenario)
        broken, fork_height, power = "", 0, 0
        try:
            world.run()
            world.judge.settle()
        except Forked as forked:
            fork_height = forked.height
            try:
                power = world.judge.settle_fork(fork_height)
            except InvariantBroken as error:
                broken = _story(world, str(error))
        except InvariantBroken as error:
            broken = _story(world, str(error))
        except Exception as error:
            broken = _story(world, f"a node stopped: {type(error).__name__}: {error}")
        return Outcome(
            seed=scenario.seed,
            validators=scenario.validators,
            trace=world.trace.hexdigest(),
            broken=broken,
            events=world.events,
            simulated_ms=world.now_ms,
            after_calm_ms=max(world.now_ms - world.calm_since_ms, 0) if world.calm_since_ms >= 0 else 0,
            heights=len(world.judge.decisions),
            most_rounds=world.most_rounds,
            crashes=world.crashes,
            crash_places=tuple(sorted(world.crash_places)),
            lost=world.lost,
            blames=world.blames,
            accused=len(world.judge.accused),
            unlocked_prevotes=world.judge.prevotes_on_locks,
            fork_height=fork_height,
            accused_power=power,
        )


def run_seeds(
    first: int, seeds: int, validators: Sequence[int] = (4,), heights: int = 3, jobs: int = 1, plant: str = ""
) -> Iterator[Outcome]:
    """Seed s runs with the size at place s of `validators`, round and round. In order of seeds."""
    tasks = [(seed, validators[seed % len(validators)], heights, plant) for seed in range(first, first + seeds)]
    if jobs == 1:
        yield from map(_run_task, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_run_task, tasks, CHUNK)


def replay_command(outcome: Outcome, heights: int = 3, plant: str = "") -> str:
    planted_too = f" --plant {plant}" if plant else ""
    return (
        f"python -m talkoo_sim consensus --first {outcome.seed} --seeds 1 --validators {outcome.validators} "
        f"--heights {heights}{planted_too}"
    )


def _run_task(task: tuple[int, int, int, str]) -> Outcome:
    return run_seed(*task)


def _story(world: World, why: str) -> str:
    scenario = world.scenario
    return f"seed {scenario.seed} with {scenario.validators} validators: {why}\n{scenario}\n{world.last_events()}"
