"""Production drivers under delay, loss, crashes and equivocation; and whether the simulator would notice a mistake."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from talkoo_consensus import round as round_machine
from talkoo_consensus import votes
from talkoo_consensus.round import Output, RoundState
from talkoo_consensus.types import BlockId

from talkoo_sim import consensus
from talkoo_sim.__main__ import main
from talkoo_sim.consensus import InvariantBroken, run_seed

SEEDS = 200
BATCH = 25


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_seeds_keep_agreement_validity_and_progress(first: int) -> None:
    outcomes = [run_seed(seed) for seed in range(first, first + BATCH)]
    assert sum(outcome.dropped for outcome in outcomes) > 0
    assert sum(outcome.crashes for outcome in outcomes) > 0
    assert max(outcome.most_rounds for outcome in outcomes) > 1


@pytest.mark.parametrize("seed", range(8))
def test_seven_validators_bear_two_that_break_the_rules(seed: int) -> None:
    run_seed(1000 + seed, validators=7, heights=2)


def test_a_seed_replays_to_the_last_event() -> None:
    for seed in (3, 17, 42):
        assert run_seed(seed) == run_seed(seed)


def _first_broken(seeds: int) -> InvariantBroken | None:
    for seed in range(seeds):
        try:
            run_seed(seed)
        except InvariantBroken as error:
            return error
    return None


def test_the_simulator_notices_a_quorum_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votes, "is_quorum", votes.is_one_honest)
    broken = _first_broken(100)
    assert broken is not None
    assert "seed " in str(broken)


def test_the_simulator_notices_a_log_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its logged events a restarted driver wants to vote otherwise than it did."""
    original = consensus.Simulation._restart

    def forgetful(self: consensus.Simulation, node: consensus._Node) -> None:
        del node.log[1:]
        original(self, node)

    monkeypatch.setattr(consensus.Simulation, "_restart", forgetful)
    broken = _first_broken(200)
    assert broken is not None
    assert "than before its crash" in str(broken)


def test_the_simulator_notices_validators_that_do_not_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    original = round_machine._see_polka

    def unlocked(state: RoundState, value: BlockId) -> tuple[RoundState, tuple[Output, ...]]:
        after, outputs = original(state, value)
        return replace(after, locked=None, valid=None), outputs

    monkeypatch.setattr(round_machine, "_see_polka", unlocked)
    broken = _first_broken(400)
    assert broken is not None
    assert "two decisions" in str(broken)


def test_the_command_line_names_a_broken_seed_and_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    good = CliRunner().invoke(main, ["consensus", "--seeds", "2", "--heights", "1", "--json"])
    assert good.exit_code == 0
    assert [json.loads(line)["seed"] for line in good.stdout.splitlines()] == [0, 1]
    monkeypatch.setattr(consensus, "MAX_EVENTS", 5)
    bad = CliRunner().invoke(main, ["consensus", "--seeds", "1", "--first", "6"])
    assert bad.exit_code == 1
    assert "seed 6" in bad.output
    assert "--first 6 --seeds 1" in bad.output
