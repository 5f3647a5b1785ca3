"""Whoever makes a fork is named with at least 1/3 of the power, and no correct validator ever is."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Final

import pytest
from talkoo_consensus.accountability import (
    AMNESIA,
    DUPLICATE_VOTE,
    Accusation,
    accuse,
    accused_power,
    amnesia_of,
    justify,
)
from talkoo_consensus.driver import (
    BuildValue,
    CheckValue,
    Driver,
    ProposalReceived,
    ScheduleTimeout,
    SignAndSendProposal,
    SignAndSendVote,
    StartHeight,
    TimeoutElapsed,
    ValueBuilt,
    ValueChecked,
    VoteReceived,
)
from talkoo_consensus.encoding import block_id_of
from talkoo_consensus.types import NIL_BLOCK_ID, Block, BlockId, Proposal, SignedType, Vote

from talkoo_core.errors import InvalidInput
from talkoo_sim.consensus_table import Table

PREVOTE, PRECOMMIT = SignedType.PREVOTE, SignedType.PRECOMMIT
STEPS: Final = 400
SEEDS: Final = 60
TIMEOUT_CHANCE, MEETING_CHANCE, LIE_CHANCE = 0.12, 0.1, 0.35


class World:
    """One height: production drivers of the correct validators, in two parts that rarely hear of each other, and faulty
    validators that tell each node whatever may split them. Votes of the faulty are unsigned; nothing here verifies.

    `equivocate`: whether the faulty vote for two values at one place; if not, they only forget their locks.
    """

    def __init__(self, seed: int, powers: tuple[int, ...], faulty: tuple[int, ...], *, equivocate: bool) -> None:
        self.draw = random.Random(seed)
        self.table = Table(powers)
        self.faulty = faulty
        self.equivocate = equivocate
        members = self.table.validators.validators
        self.drivers = {i: Driver(members[i].address) for i in range(len(powers)) if i not in faulty}
        shuffled = self.draw.sample(list(self.drivers), len(self.drivers))
        self.parts = {index: place % 2 for place, index in enumerate(shuffled)}
        self.mail: list[tuple[int, int, ProposalReceived | VoteReceived]] = []
        self.timeouts: list[tuple[int, TimeoutElapsed]] = []
        self.blocks: dict[BlockId, Block] = {}
        self.said: dict[tuple[int, int, SignedType], BlockId] = {}
        for number in range(2):
            self._know(self.table.block(b"faulty %d" % number, faulty[0]))
        for index, driver in self.drivers.items():
            self._step(index, driver, StartHeight(1, self.table.validators))

    def run(self) -> None:
        for _ in range(STEPS):
            if self.draw.random() < LIE_CHANCE:
                self._lie()
            if self.timeouts and self.draw.random() < TIMEOUT_CHANCE:
                index, event = self.timeouts.pop(self.draw.randrange(len(self.timeouts)))
                self._step(index, self.drivers[index], event)
            elif self.mail:
                self._deliver()

    def votes(self) -> list[Vote]:
        """Everything that correct nodes hold."""
        held = [message for driver in self.drivers.values() for message in driver.messages()]
        return [message.vote for message in held if isinstance(message, VoteReceived)]

    def decisions(self) -> set[BlockId]:
        return {driver.decided for driver in self.drivers.values() if driver.decided is not None}

    def _know(self, block: Block) -> BlockId:
        self.blocks[block_id_of(block)] = block
        return block_id_of(block)

    def _deliver(self) -> None:
        at = self.draw.randrange(len(self.mail))
        source, target, event = self.mail[at]
        apart = source in self.parts and self.parts[source] != self.parts[target]
        if apart and self.draw.random() > MEETING_CHANCE:
            return
        self.mail.pop(at)
        self._step(target, self.drivers[target], event)

    def _step(self, index: int, driver: Driver, event: object) -> None:
        events = [event]
        while events:
            for command in driver.step(events.pop(0)):  # type: ignore[arg-type]
                match command:
                    case BuildValue(height, round_, _):
                        block = self.table.block(b"of %d" % index, index)
                        events.append(ValueBuilt(height, round_, block, self._know(block)))
                    case CheckValue(height, round_, block_id, _):
                        events.append(ValueChecked(height, round_, block_id, True))
                    case SignAndSendProposal(proposal, block):
                        events.append(self._spread(index, ProposalReceived(proposal, block)))
                    case SignAndSendVote(vote):
                        events.append(self._spread(index, VoteReceived(replace(vote, timestamp_ns=1))))
                    case ScheduleTimeout(height, round_, step, _):
                        self.timeouts.append((index, TimeoutElapsed(height, round_, step)))

    def _spread(self, source: int, event: ProposalReceived | VoteReceived) -> ProposalReceived | VoteReceived:
        self.mail += [(source, target, event) for target in self.drivers if target != source]
        return event

    def _lie(self) -> None:
        """Tell one node that all faulty are for a value: its own part's, one of a round, or any."""
        target = self.draw.choice(list(self.drivers))
        driver = self.drivers[target]
        round_ = driver.round
        known = driver.proposed(round_)
        own = list(self.blocks)[self.parts[target] if self.equivocate else round_ % 2]
        value = self.draw.choice([*(known or [own]), *(known or [own]), own, *self.blocks, NIL_BLOCK_ID])
        if self.table.proposer(round_) in self.faulty and not known and not value.is_nil:
            pol_round = self.draw.choice([-1, -1, *range(round_)])
            proposal = Proposal(1, round_, pol_round, value, self.blocks[value].header.time_ns)
            self._step(target, driver, ProposalReceived(proposal, self.blocks[value]))
        for type_ in (PREVOTE, PRECOMMIT):
            for index in self.faulty:
                said = value if self.equivocate else self.said.setdefault((index, round_, type_), value)
                address = self.table.validators.validators[index].address
                self._step(target, driver, VoteReceived(Vote(type_, 1, round_, said, 2, address, index)))


FEDERATIONS = [((10, 10, 10, 10), (0, 1)), ((10, 10, 10, 10, 10, 10, 10), (1, 2, 4, 6)), ((50, 20, 20, 5, 5), (0,))]


@pytest.mark.parametrize("equivocate", [True, False], ids=["equivocation", "amnesia"])
@pytest.mark.parametrize(("powers", "faulty"), FEDERATIONS, ids=["2 of 4", "4 of 7", "half of the power"])
def test_a_fork_names_a_third_of_the_power_and_never_a_correct_validator(
    powers: tuple[int, ...], faulty: tuple[int, ...], equivocate: bool
) -> None:
    forks, kinds = 0, Counter[str]()
    for seed in range(SEEDS):
        world = World(seed, powers, faulty, equivocate=equivocate)
        world.run()
        validators, votes = world.table.validators, world.votes()
        accusations = accuse(validators, votes)
        guilty = {validators.validators[index].address for index in faulty}
        assert {accusation.validator_address for accusation in accusations} <= guilty, f"seed {seed}"
        assert accuse(validators, reversed([*votes, *votes])) == accusations
        assert all(justify(accusation, validators, votes) is None for accusation in accusations)
        if len(world.decisions()) > 1:
            forks += 1
            kinds.update(accusation.kind for accusation in accusations)
            assert 3 * accused_power(validators, accusations) >= validators.total_power, f"seed {seed}"
    assert forks >= 3, "too few forks to say anything"
    assert kinds[DUPLICATE_VOTE if equivocate else AMNESIA] >= forks


# Pairs of votes


@pytest.fixture
def table() -> Table:
    return Table()


def _value(number: int) -> BlockId:
    return BlockId(bytes([number]) * 32, 1, bytes(32))


V, W = _value(1), _value(2)


def test_two_values_at_one_place_are_a_duplicate_vote(table: Table) -> None:
    votes = [table.vote(1, PREVOTE, W), table.vote(1, PREVOTE, None), table.vote(2, PREVOTE, V)]
    (accusation,) = accuse(table.validators, votes)
    assert accusation == Accusation(DUPLICATE_VOTE, votes[0].validator_address, votes[1], votes[0])
    assert justify(accusation, table.validators, votes) is None


def test_the_same_value_signed_at_two_times_is_no_offence(table: Table) -> None:
    vote = table.vote(1, PREVOTE, V)
    assert accuse(table.validators, [vote, replace(vote, timestamp_ns=5)]) == ()


@pytest.mark.parametrize("later", [PREVOTE, PRECOMMIT])
def test_another_value_in_a_later_round_is_amnesia(table: Table, later: SignedType) -> None:
    votes = [table.vote(1, PRECOMMIT, V, 2), table.vote(1, later, W, 5)]
    (accusation,) = accuse(table.validators, votes)
    assert accusation == amnesia_of(*votes)


@pytest.mark.parametrize(
    ("later", "polka_round", "allowed"),
    [
        (PREVOTE, 1, False),
        (PREVOTE, 2, True),
        (PREVOTE, 4, True),
        (PREVOTE, 5, False),
        (PRECOMMIT, 1, False),
        (PRECOMMIT, 4, True),
        (PRECOMMIT, 5, True),
        (PRECOMMIT, 6, False),
    ],
)
def test_prevotes_of_two_thirds_in_between_allow_another_value(
    table: Table, later: SignedType, polka_round: int, allowed: bool
) -> None:
    """Lines 28-29 look at rounds before the vote's own; line 36 locks anew on the prevotes of its own round."""
    accused = [table.vote(1, PRECOMMIT, V, 2), table.vote(1, later, W, 5)]
    polka = [table.vote(index, PREVOTE, W, polka_round) for index in (0, 2, 3)]
    named = {accusation.validator_address for accusation in accuse(table.validators, accused + polka)}
    assert (accused[0].validator_address in named) is not allowed
    answer = justify(amnesia_of(*accused), table.validators, polka)
    assert answer == (tuple(sorted(polka, key=lambda vote: vote.validator_address)) if allowed else None)


def test_an_answer_needs_more_than_two_thirds_of_real_prevotes_for_the_value_in_one_round(table: Table) -> None:
    accusation = amnesia_of(table.vote(1, PRECOMMIT, V, 2), table.vote(1, PREVOTE, W, 5))

    def answered(votes: list[Vote]) -> bool:
        return justify(accusation, table.validators, votes) is not None

    polka = [table.vote(index, PREVOTE, W, 3) for index in (0, 2, 3)]
    assert answered(polka)
    assert not answered(polka[:2])
    assert not answered(polka[:2] * 5)
    assert not answered([*polka[:2], table.vote(3, PREVOTE, W, 4)])
    assert not answered([table.vote(index, PREVOTE, V, 3) for index in (0, 2, 3)])
    assert not answered([table.vote(index, PRECOMMIT, W, 3) for index in (0, 2, 3)])
    assert not answered([replace(vote, height=2) for vote in polka])
    assert not answered([*polka[:2], replace(polka[2], validator_address=bytes(20))])


ALLOWED = {
    "nil prevoted while locked": lambda t: [t.vote(1, PRECOMMIT, V, 2), t.vote(1, PREVOTE, None, 3)],
    "nil precommitted while locked": lambda t: [t.vote(1, PRECOMMIT, V, 2), t.vote(1, PRECOMMIT, None, 3)],
    "the locked value again": lambda t: [t.vote(1, PRECOMMIT, V, 2), t.vote(1, PREVOTE, V, 3)],
    "an earlier round": lambda t: [t.vote(1, PRECOMMIT, V, 2), t.vote(1, PREVOTE, W, 1)],
    "a prevote does not lock": lambda t: [t.vote(1, PREVOTE, V, 2), t.vote(1, PREVOTE, W, 3)],
    "nil does not lock": lambda t: [t.vote(1, PRECOMMIT, None, 2), t.vote(1, PREVOTE, W, 3)],
    "another validator": lambda t: [t.vote(1, PRECOMMIT, V, 2), t.vote(2, PREVOTE, W, 3)],
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_the_rules_allow_accuses_nobody(table: Table, what: str) -> None:
    votes = ALLOWED[what](table)
    assert accuse(table.validators, votes) == ()
    with pytest.raises(InvalidInput) as error:
        amnesia_of(*votes)
    assert error.value.code == "no_accusation"


def test_strangers_are_passed_over(table: Table) -> None:
    votes = [replace(table.vote(1, PREVOTE, value), validator_address=bytes(20)) for value in (V, W)]
    assert accuse(table.validators, votes) == ()
    assert accused_power(table.validators, ()) == 0
