"""The production node under everything that a seed draws; and whether the simulator is what it says it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from talkoo_sim.__main__ import main
from talkoo_sim.consensus import world
from talkoo_sim.consensus.planted import MISTAKES
from talkoo_sim.consensus.run import Outcome, run_seed, run_seeds
from talkoo_sim.consensus.scenario import Lie, Scenario

SEEDS = {4: 1_600, 7: 240, 10: 100, 16: 60}
"""Of each size, here, on two cores in a minute or two; `python -m talkoo_sim consensus` runs any number."""
JOBS = 2


pytestmark = pytest.mark.timeout(900)  # for processors that do other work, too


class Outcomes(dict[int, list[Outcome]]):
    """Of the seeds of a size, run when first asked for."""

    def __missing__(self, size: int) -> list[Outcome]:
        self[size] = list(run_seeds(0, SEEDS[size], (size,), jobs=JOBS))
        return self[size]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return Outcomes()


@pytest.mark.parametrize("size", SEEDS)
def test_seeds_keep_every_invariant(outcomes: Outcomes, size: int) -> None:
    broken = [outcome.broken for outcome in outcomes[size] if outcome.broken]
    assert not broken, broken[0]
    assert all(outcome.heights > 0 for outcome in outcomes[size] if not Scenario.draw(outcome.seed, size).over)


def test_the_seeds_show_what_they_are_for(outcomes: Outcomes) -> None:
    """A simulator whose faults never strike finds nothing."""
    four = outcomes[4]
    assert sum(outcome.crashes for outcome in four) > 400
    assert sum(outcome.lost for outcome in four) > 8_000
    assert sum(outcome.accused > 0 for outcome in four) > 80
    assert sum(outcome.blames > 0 for outcome in four) > 40
    assert max(outcome.most_rounds for outcome in four) > 3
    places = {place for outcome in four for place in outcome.crash_places}
    for where in ("before syncing sign-state", "after syncing sign-state", "before sending", "before storing a block"):
        assert where in places
    drawn = {lie for seed in range(SEEDS[4]) for lies in Scenario.draw(seed, 4).lies.values() for lie in lies}
    assert drawn == set(Lie)


def test_forks_happen_only_with_a_third_of_liars_and_name_a_third(outcomes: Outcomes) -> None:
    forks = [(size, outcome) for size in SEEDS for outcome in outcomes[size] if outcome.fork_height]
    assert len(forks) > 20
    for size, outcome in forks:
        scenario = Scenario.draw(outcome.seed, size)
        assert scenario.over
        assert 3 * outcome.accused_power >= sum(scenario.powers)


def test_a_seed_replays_to_the_last_byte_in_any_process() -> None:
    seeds = (3, 5, 15)
    here = {seed: run_seed(seed).trace for seed in seeds}
    assert len(set(here.values())) == len(seeds)
    assert {seed: run_seed(seed).trace for seed in seeds} == here
    code = (
        "import json\nfrom talkoo_sim.consensus.run import run_seed\n"
        f"print(json.dumps({{seed: run_seed(seed).trace for seed in {seeds}}}))"
    )
    for hash_seed in ("0", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        assert json.loads(told) == {str(seed): trace for seed, trace in here.items()}


def test_the_command_line_names_a_broken_seed_and_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    good = CliRunner().invoke(main, ["consensus", "--seeds", "2", "--validators", "4,7", "--heights", "1", "--json"])
    assert good.exit_code == 0
    *seeds, total = [json.loads(line) for line in good.stdout.splitlines()]
    assert [(each["seed"], each["validators"]) for each in seeds] == [(0, 4), (1, 7)]
    assert total["seeds"] == 2
    assert total["broken"] == 0
    monkeypatch.setattr(world, "MAX_EVENTS", 5)
    bad = CliRunner().invoke(main, ["consensus", "--seeds", "1", "--first", "5", "--validators", "4"])
    assert bad.exit_code == 1
    assert "seed 5" in bad.output
    assert "timer TimeoutElapsed" in bad.output
    assert "--first 5 --seeds 1 --validators 4" in bad.output


def test_sizes_that_are_none_are_refused_with_an_example() -> None:
    told = CliRunner().invoke(main, ["consensus", "--validators", "four"])
    assert told.exit_code == 2
    assert "4,7,10,16" in told.output
    assert CliRunner().invoke(main, ["consensus", "--validators", "3"]).exit_code == 2


FOUND_AT = {
    "quorum-one-third": 0,
    "quorum-two-thirds": 5,
    "forget-log": 14,
    "send-before-sync": 22,
    "ignore-lock": 60,
    "old-polka": 60,
    "other-polka": 60,
    "forget-valid": 73,
    "skip-for-anybody": 504,
}
"""The first seed of four validators that each mistake breaks. Other events, other seeds: `--plant` finds them anew."""
NEAR = 12


@pytest.mark.parametrize("mistake", FOUND_AT)
def test_a_planted_mistake_is_found_within_a_thousand_seeds(mistake: str) -> None:
    first = max(FOUND_AT[mistake] - NEAR, 0)
    seeds = range(first, min(FOUND_AT[mistake] + NEAR, 1_000))
    found = [run_seed(seed, plant=mistake) for seed in seeds]
    assert any(outcome.broken for outcome in found)
    assert not any(run_seed(outcome.seed).broken for outcome in found if outcome.broken)


def test_every_mistake_that_can_be_planted_is_looked_for() -> None:
    assert set(FOUND_AT) == set(MISTAKES)
