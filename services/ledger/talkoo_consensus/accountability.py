"""Who broke the rules of a height, told from the votes that were seen there. Pure forensics, after the fact.

Tendermint with at most 2/3 of the power faulty is accountable: two decisions at one height prove at least 1/3 of the
power faulty (Buchman, Kwon, Milosevic: arXiv 1807.04938; Sheng, Wang, Nayak, Kannan, Viswanath: BFT Protocol Forensics,
CCS 2021, arXiv 2010.06785).

- duplicate_vote: two votes for different values, nil included, at the same round and type. Needs nothing else.
- amnesia: a precommit for v in round r, then in a later round r2 a vote for another value w that nothing allowed. By
  lines 28-29 a validator locked in r prevotes w in r2 only after > 2/3 prevoted w in one round of [r, r2); by line 36
  it precommits w only after > 2/3 prevoted w in r2 itself. Where such prevotes exist the vote is justified, so an
  accusation of amnesia stands only until somebody shows them.

Why 1/3 is named when v is decided in r and w in r2 >= r. Both quorums hold a correct validator, which saw > 2/3
prevotes for its value in its round. If r2 = r, the precommits share 1/3, each a duplicate_vote. If not, take the first
round q > r in which > 2/3 prevoted some value other than v. Its prevoters share 1/3 with the precommitters of v in r:
each of them forgot its lock (there are no such prevotes in between; if there are some in r itself, then the two
quorums of prevotes in r share 1/3, each a duplicate_vote).
Why no correct validator is named when all that correct ones have seen is given: it had seen those prevotes itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from talkoo_consensus.types import BlockId, SignedType, Vote
from talkoo_consensus.validators import ValidatorSet
from talkoo_consensus.votes import is_quorum
from talkoo_core.errors import InvalidInput

DUPLICATE_VOTE: Final = "duplicate_vote"
AMNESIA: Final = "amnesia"

_Polkas: TypeAlias = dict[tuple[int, BlockId], dict[bytes, Vote]]
"""Prevotes by round and value, one for each validator."""


@dataclass(frozen=True, slots=True)
class Accusation:
    """`vote_a` came first by the rules: the precommit that locked, or the lower block id at the same place."""

    kind: str
    validator_address: bytes
    vote_a: Vote
    vote_b: Vote


def accuse(validators: ValidatorSet, votes: Iterable[Vote]) -> tuple[Accusation, ...]:
    """At most one accusation of each kind for each validator, ordered by address, duplicate votes first.

    `validators`: of the height. `votes`: all of one height, signatures verified, from as many nodes as there are; votes
    of strangers are passed over. What correct validators have seen must be among them: who lacks prevotes that another
    has may accuse it of amnesia wrongly, and is answered with them (`justify`).
    """
    by_validator: dict[bytes, list[Vote]] = {}
    polkas: _Polkas = {}
    heights: set[int] = set()
    for vote in sorted(set(votes), key=_order):
        if validators.find(vote.validator_address) is None:
            continue
        heights.add(vote.height)
        by_validator.setdefault(vote.validator_address, []).append(vote)
        if vote.type is SignedType.PREVOTE:
            polkas.setdefault((vote.round, vote.block_id), {})[vote.validator_address] = vote
    assert len(heights) <= 1, "the votes are of several heights; accuse for each with its validators"
    found: list[Accusation] = []
    for _, own in sorted(by_validator.items()):
        found += [accusation for accusation in (_duplicate(own), _amnesia(own, polkas, validators)) if accusation]
    return tuple(found)


def accused_power(validators: ValidatorSet, accusations: Iterable[Accusation]) -> int:
    """The power of everybody who is named, each counted once."""
    named = {accusation.validator_address for accusation in accusations}
    return sum(validator.power for validator in validators.validators if validator.address in named)


def amnesia_of(vote_a: Vote, vote_b: Vote) -> Accusation:
    """The accusation these two votes make, whoever signed them; signatures are the caller's to verify.

    Raises InvalidInput (`no_accusation`) where nobody could have broken a rule with them.
    """
    if (vote_a.height, vote_a.validator_address) != (vote_b.height, vote_b.validator_address):
        raise _no("they are of different heights or validators")
    if vote_a.type is not SignedType.PRECOMMIT or vote_a.block_id.is_nil:
        raise _no("the first must be a precommit for a block: only that locks")
    if vote_b.round <= vote_a.round:
        raise _no("the second must be of a later round")
    if vote_b.block_id.is_nil or vote_b.block_id == vote_a.block_id:
        raise _no("the second must be for another block: nil and the locked block are always allowed")
    return Accusation(AMNESIA, vote_a.validator_address, vote_a, vote_b)


def justify(accusation: Accusation, validators: ValidatorSet, votes: Iterable[Vote]) -> tuple[Vote, ...] | None:
    """Prevotes of > 2/3 that allowed the second vote, in order of address; None where these votes hold none.

    For an accusation of amnesia; a duplicate vote has no excuse. Signatures are the caller's to verify.
    """
    if accusation.kind != AMNESIA:
        return None
    vote_b = accusation.vote_b
    by_round: dict[int, dict[bytes, Vote]] = {}
    for vote in votes:
        fits = (vote.height, vote.type, vote.block_id) == (vote_b.height, SignedType.PREVOTE, vote_b.block_id)
        if fits and vote.round in _allowing_rounds(accusation.vote_a, vote_b):
            by_round.setdefault(vote.round, {})[vote.validator_address] = vote
    for _, prevotes in sorted(by_round.items()):
        if _is_polka(prevotes, validators):
            return tuple(vote for address, vote in sorted(prevotes.items()) if validators.find(address) is not None)
    return None


def _duplicate(own: list[Vote]) -> Accusation | None:
    places: dict[tuple[int, SignedType], Vote] = {}
    for vote in own:
        first = places.setdefault((vote.round, vote.type), vote)
        if first.block_id != vote.block_id:
            return Accusation(DUPLICATE_VOTE, vote.validator_address, first, vote)
    return None


def _amnesia(own: list[Vote], polkas: _Polkas, validators: ValidatorSet) -> Accusation | None:
    """The first later vote that no prevotes allowed, with the last lock that it forgot."""
    locks = [vote for vote in own if vote.type is SignedType.PRECOMMIT and not vote.block_id.is_nil]
    for vote in own:
        for lock in reversed(locks):
            if vote.block_id.is_nil or vote.block_id == lock.block_id or vote.round <= lock.round:
                continue
            rounds = _allowing_rounds(lock, vote)
            if not any(_is_polka(polkas.get((round_, vote.block_id), {}), validators) for round_ in rounds):
                return Accusation(AMNESIA, vote.validator_address, lock, vote)
    return None


def _allowing_rounds(lock: Vote, vote: Vote) -> range:
    """Where prevotes of > 2/3 for the vote's value allow it in spite of the lock."""
    own_round = 1 if vote.type is SignedType.PRECOMMIT else 0
    return range(lock.round, vote.round + own_round)


def _is_polka(prevotes: dict[bytes, Vote], validators: ValidatorSet) -> bool:
    power = sum(validator.power for validator in validators.validators if validator.address in prevotes)
    return is_quorum(power, validators.total_power)


def _order(vote: Vote) -> tuple[int, int, bytes, bytes, int, bytes]:
    value = vote.block_id
    return vote.round, vote.type, value.hash, value.part_set_hash, vote.timestamp_ns, vote.signature


def _no(why: str) -> InvalidInput:
    return InvalidInput(f"these two votes accuse nobody: {why}", code="no_accusation")
