"""The vote keeper of one height: who voted what, and which values have a quorum, by power in integers.

Votes are what the paper's rules count. A validator that votes twice is counted once for each value it voted for (the
paper's log holds all messages, and its quorum intersection allows for that) and once for "any"; the pair of votes is
evidence. Bounds: a validator's votes are kept for all rounds up to the current one and the next, and for its highest
MAX_FUTURE_ROUNDS beyond; in a round it may hold MAX_VALUES_PER_ROUND values of each type, and more only for values
that have been proposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from talkoo_consensus.types import (
    ABSENT_SIG,
    BlockId,
    BlockIdFlag,
    Commit,
    CommitSig,
    ConflictingVotes,
    SignedType,
    Vote,
)
from talkoo_consensus.validators import ValidatorSet

MAX_FUTURE_ROUNDS: Final = 2
MAX_VALUES_PER_ROUND: Final = 2


def is_quorum(power: int, total: int) -> bool:
    """2f+1 of the paper: more than two thirds."""
    return 3 * power > 2 * total


def is_one_honest(power: int, total: int) -> bool:
    """f+1 of the paper: more than one third."""
    return 3 * power > total


@dataclass(slots=True)
class _Tally:
    """Votes of one round and type. `by_validator` keeps each validator's votes in order of arrival."""

    by_validator: dict[int, list[Vote]] = field(default_factory=dict)
    power_of: dict[BlockId, int] = field(default_factory=dict)
    voted_power: int = 0
    reported: set[int] = field(default_factory=set)


@dataclass(slots=True)
class VoteKeeper:
    height: int
    validators: ValidatorSet
    total_power: int = field(init=False)
    _tallies: dict[tuple[int, SignedType], _Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total_power = self.validators.total_power

    def add(self, vote: Vote, current_round: int, proposed: bool) -> tuple[bool, ConflictingVotes | None]:
        """Count a vote. `proposed`: its value is that of a proposal we hold.

        Returns whether anything changed, and the evidence of a first double vote. Votes of another height, of
        strangers and beyond the bounds change nothing.
        """
        validator = self.validators.at(vote.validator_index)
        if vote.height != self.height or validator is None or validator.address != vote.validator_address:
            return False, None
        if vote.round > current_round + 1 and not self._make_room(vote, current_round):
            return False, None
        tally = self._tallies.setdefault((vote.round, vote.type), _Tally())
        held = tally.by_validator.get(vote.validator_index, [])
        if any(other.block_id == vote.block_id for other in held):
            return False, None
        evidence = None
        if held and vote.validator_index not in tally.reported:
            tally.reported.add(vote.validator_index)
            evidence = ConflictingVotes(held[0], vote)
        if len(held) >= MAX_VALUES_PER_ROUND and not (proposed or vote.block_id.is_nil):
            return False, evidence
        if not held:
            tally.voted_power += validator.power
        tally.by_validator[vote.validator_index] = [*held, vote]
        tally.power_of[vote.block_id] = tally.power_of.get(vote.block_id, 0) + validator.power
        return True, evidence

    def holds(self, vote: Vote) -> bool:
        """Whether this very vote is counted here."""
        tally = self._tallies.get((vote.round, vote.type))
        return tally is not None and vote in tally.by_validator.get(vote.validator_index, ())

    def _make_room(self, vote: Vote, current_round: int) -> bool:
        """Let the validator hold only its highest rounds beyond the next one; whether this vote is among them."""
        rounds = {
            round_
            for (round_, _), tally in self._tallies.items()
            if round_ > current_round + 1 and vote.validator_index in tally.by_validator
        }
        if vote.round in rounds or len(rounds) < MAX_FUTURE_ROUNDS:
            return True
        lowest = min(rounds)
        if vote.round < lowest:
            return False
        validator = self.validators.at(vote.validator_index)
        assert validator is not None
        for type_ in (SignedType.PREVOTE, SignedType.PRECOMMIT):
            tally = self._tallies.get((lowest, type_))
            votes = tally.by_validator.pop(vote.validator_index, []) if tally is not None else []
            if tally is None or not votes:
                continue
            tally.voted_power -= validator.power
            for old in votes:
                tally.power_of[old.block_id] -= validator.power
            if not tally.by_validator:
                del self._tallies[(lowest, type_)]
        return True

    def quorum_value(self, round_: int, type_: SignedType) -> BlockId | None:
        """The value (nil included) with 2f+1 of this type in a round. There is one at most while f hold to less."""
        tally = self._tallies.get((round_, type_))
        if tally is None:
            return None
        return next((value for value, power in tally.power_of.items() if is_quorum(power, self.total_power)), None)

    def has_quorum(self, round_: int, type_: SignedType, value: BlockId) -> bool:
        tally = self._tallies.get((round_, type_))
        return tally is not None and is_quorum(tally.power_of.get(value, 0), self.total_power)

    def has_quorum_of_any(self, round_: int, type_: SignedType) -> bool:
        tally = self._tallies.get((round_, type_))
        return tally is not None and is_quorum(tally.voted_power, self.total_power)

    def all_voted(self, round_: int, type_: SignedType) -> bool:
        tally = self._tallies.get((round_, type_))
        return tally is not None and tally.voted_power == self.total_power

    def is_backed(self, value: BlockId) -> bool:
        """Whether f+1 voted for a value in some round, so that at least one correct validator has seen it."""
        return any(is_one_honest(tally.power_of.get(value, 0), self.total_power) for tally in self._tallies.values())

    def skip_round(self, current_round: int) -> int | None:
        """The highest later round in which f+1 of the power has sent votes (line 55)."""
        voters: dict[int, set[int]] = {}
        for (round_, _), tally in self._tallies.items():
            if round_ > current_round:
                voters.setdefault(round_, set()).update(tally.by_validator)
        backed = [
            round_
            for round_, indices in voters.items()
            if is_one_honest(sum(self.validators.validators[index].power for index in indices), self.total_power)
        ]
        return max(backed, default=None)

    def rounds(self) -> list[int]:
        return sorted({round_ for round_, _ in self._tallies})

    def votes(self) -> Iterator[Vote]:
        """All votes held, in order of rounds, prevotes first."""
        for key in sorted(self._tallies):
            for _, votes in sorted(self._tallies[key].by_validator.items()):
                yield from votes

    def commit(self, round_: int, block_id: BlockId) -> Commit:
        """The precommits of a round as the commit of a block; those for other values are absent, nil is kept."""
        tally = self._tallies.get((round_, SignedType.PRECOMMIT), _Tally())
        return Commit(
            self.height,
            round_,
            block_id,
            tuple(_place(tally.by_validator.get(index, []), block_id) for index in range(len(self.validators))),
        )


def _place(votes: list[Vote], block_id: BlockId) -> CommitSig:
    for vote in votes:
        if vote.block_id == block_id:
            return CommitSig(BlockIdFlag.COMMIT, vote.validator_address, vote.timestamp_ns, vote.signature)
    for vote in votes:
        if vote.block_id.is_nil:
            return CommitSig(BlockIdFlag.NIL, vote.validator_address, vote.timestamp_ns, vote.signature)
    return ABSENT_SIG
