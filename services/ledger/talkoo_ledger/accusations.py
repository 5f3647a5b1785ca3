"""Amnesia before the ledger: two votes accuse a validator, prevotes that allowed the second one clear it.

A validator that precommitted a block and later votes for another one has forgotten its lock, unless more than 2/3
prevoted the other one in between (`talkoo_consensus.accountability`). Who holds those prevotes is not known to whoever
sees the two votes. So anybody may accuse, and anybody may answer with the prevotes, for a part of the unbonding period;
unanswered it is punished as a double vote is, and before the stake behind the votes is free.

The powers of past heights are kept in the state for this, as sets that begin at a height.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from msgspec.structs import replace
from talkoo_consensus.accountability import AMNESIA, Accusation, amnesia_of, justify
from talkoo_consensus.encoding import decode_vote
from talkoo_consensus.types import Vote
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_consensus.verify import verify_vote

from talkoo_core.errors import Conflict, Corrupt, InvalidInput, NotFound
from talkoo_ledger.context import Context
from talkoo_ledger.messages import AccuseAmnesia, AnswerAccusation
from talkoo_ledger.misbehavior import Misbehavior, covered, punish
from talkoo_ledger.records import AmnesiaAccusation, SetMember, ValidatorsAt
from talkoo_ledger.state import State

EFFECT_HEIGHTS: Final = 2
"""Powers at the end of a block decide the block so many heights later."""
UNBONDING_PARTS: Final = 3
"""One part of the unbonding period to accuse in, one to answer in, one to spare."""


def answer_blocks(unbonding_blocks: int) -> int:
    """How long an accusation may be answered, and how old the votes of one may be."""
    return max(unbonding_blocks // UNBONDING_PARTS, 1)


def accuse_amnesia(context: Context, sender: str, message: AccuseAmnesia) -> None:
    accusation = amnesia_of(_vote(message.vote_a), _vote(message.vote_b))
    height, address = accusation.vote_a.height, accusation.validator_address
    if not context.height - answer_blocks(context.params.unbonding_blocks) <= height < context.height:
        raise Conflict(f"height {height} is not decided yet or too long ago", code="wrong_height")
    validators = validators_at(context.state, height)
    for vote in (accusation.vote_a, accusation.vote_b):
        _check_signed(context, validators, vote)
    key = accusation_key(height, address)
    if context.state.accusations.get(key) is not None:
        raise Conflict(f"{address.hex()} is accused of amnesia at height {height} already", code="already_accused")
    if covered(context, address, height):
        raise Conflict(f"{address.hex()} was punished for what it did at height {height}", code="already_punished")
    deadline = context.height + answer_blocks(context.params.unbonding_blocks)
    context.state.accusations.put(
        key, AmnesiaAccusation(key, address, height, message.vote_a, message.vote_b, sender, deadline)
    )
    context.emit("accused", address.hex(), height=height, deadline_height=deadline, accuser=sender)


def answer_accusation(context: Context, sender: str, message: AnswerAccusation) -> None:
    """The votes are looked at first, and only those that clear the validator cost a signature's computation."""
    accusation = context.state.accusations.get(message.accusation)
    if accusation is None:
        raise NotFound(f"there is no accusation {message.accusation!r} (any more)", code="unknown_accusation")
    if accusation.answered:
        raise Conflict("somebody has answered this accusation", code="already_answered")
    validators = validators_at(context.state, accusation.height)
    excuse = justify(_read(accusation), validators, map(_vote, message.votes))
    if excuse is None:
        raise InvalidInput(
            "these votes do not allow the second vote: it takes prevotes of > 2/3 for its block in one round between",
            code="no_excuse",
        )
    for vote in excuse:
        _check_signed(context, validators, vote)
    context.state.accusations.put(accusation.id, replace(accusation, answered=True))
    context.emit("accusation_answered", accusation.validator_address.hex(), height=accusation.height, sender=sender)


def close_accusations(context: Context) -> None:
    """Punish what was not answered in time; an answered accusation is remembered while it could be made again."""
    for accusation in context.state.accusations.live():
        if context.height < accusation.deadline_height:
            continue
        context.state.accusations.remove(accusation.id)
        if not accusation.answered:
            punish(context, _misbehavior(context, accusation))


def remember_validators(context: Context) -> None:
    """At the end of a block: whom it makes validators, where that is news. Sets of long ago go."""
    state = context.state
    sets = state.validator_sets.live()
    members = tuple(
        SetMember(each.validator_key, each.power)
        for each in sorted(state.organizations.all(), key=lambda each: each.validator_key)
        if each.power > 0
    )
    if sets[-1].members != members:
        _put(state, context.height + EFFECT_HEIGHTS, members)
    oldest = context.height - context.params.unbonding_blocks
    for older, newer in pairwise(sets):
        if newer.from_height <= oldest:
            state.validator_sets.remove(_set_key(older.from_height))


def begin_validators(state: State) -> None:
    """Those of genesis decide the first block."""
    members = sorted(state.organizations.all(), key=lambda each: each.validator_key)
    _put(state, 1, tuple(SetMember(each.validator_key, each.power) for each in members if each.power > 0))


def validators_at(state: State, height: int) -> ValidatorSet:
    """Who decided a height. Raises NotFound (code `unknown_height`) for one too long ago."""
    sets = [each for each in state.validator_sets.live() if each.from_height <= height]
    if not sets:
        raise NotFound(f"the validators of height {height} are not remembered any more", code="unknown_height")
    return ValidatorSet.create(Validator.of(each.validator_key, each.power) for each in sets[-1].members)


def accusation_key(height: int, validator_address: bytes) -> str:
    return f"{height:012d}/{validator_address.hex()}"


def _put(state: State, from_height: int, members: tuple[SetMember, ...]) -> None:
    state.validator_sets.put(_set_key(from_height), ValidatorsAt(from_height, members))


def _set_key(from_height: int) -> str:
    return f"{from_height:012d}"


def _vote(data: bytes) -> Vote:
    try:
        return decode_vote(data)
    except Corrupt as error:
        raise InvalidInput(f"this is no vote: {error.message}", code="bad_vote") from None


def _read(accusation: AmnesiaAccusation) -> Accusation:
    return amnesia_of(_vote(accusation.vote_a), _vote(accusation.vote_b))


def _check_signed(context: Context, validators: ValidatorSet, vote: Vote) -> None:
    found = validators.find(vote.validator_address)
    if found is None:
        raise NotFound(
            f"{vote.validator_address.hex()} was no validator at height {vote.height}", code="unknown_validator"
        )
    if not verify_vote(vote, context.state.chain.chain_id, found[1]):
        raise InvalidInput(f"{vote.validator_address.hex()} did not sign this vote", code="bad_vote")


def _misbehavior(context: Context, accusation: AmnesiaAccusation) -> Misbehavior:
    validators = validators_at(context.state, accusation.height)
    found = validators.find(accusation.validator_address)
    power = 0 if found is None else found[1].power
    at_ns = _vote(accusation.vote_b).timestamp_ns
    return Misbehavior(AMNESIA, accusation.validator_address, power, accusation.height, at_ns, validators.total_power)
