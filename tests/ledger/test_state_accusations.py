"""Two votes accuse a validator of amnesia; prevotes clear it, silence costs what a double vote costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_consensus.encoding import encode_vote, vote_sign_bytes
from talkoo_consensus.types import NIL_BLOCK_ID, BlockId, SignedType, Vote
from talkoo_ledger.accusations import EFFECT_HEIGHTS, accusation_key, answer_blocks, validators_at
from talkoo_ledger.application import replay
from talkoo_ledger.misbehavior import Misbehavior

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_core.errors import Conflict, InvalidInput, NotFound, TalkooError
from talkoo_sim.ledger_chain import BLOCK_NS, CHAIN_ID, ORGANIZATIONS, LedgerChain, key_of, make_genesis

PREVOTE, PRECOMMIT = SignedType.PREVOTE, SignedType.PRECOMMIT
ACCUSED, *OTHERS = ORGANIZATIONS
ADDRESS = key_of(f"{ACCUSED}-consensus").public.address
V, W = (BlockId(bytes([number]) * 32, 1, bytes(32)) for number in (1, 2))
HEIGHT = 4
UNBONDING = 600
WINDOW = answer_blocks(UNBONDING)


@pytest.fixture
def chain() -> LedgerChain:
    """At the end of block 5."""
    made = LedgerChain(make_genesis(epoch_blocks=1_000, unbonding_blocks=UNBONDING))
    made.skip(HEIGHT + 1)
    return made


def vote(
    chain: LedgerChain, type_: SignedType, value: BlockId, round_: int, name: str = ACCUSED, height: int = HEIGHT
) -> Vote:
    key = key_of(f"{name}-consensus")
    found = validators_at(chain.state, height).find(key.public.address)
    assert found is not None
    unsigned = Vote(type_, height, round_, value, height * BLOCK_NS, key.public.address, found[0])
    return replace(unsigned, signature=key.sign(vote_sign_bytes(CHAIN_ID, unsigned)))


def accusation(first: Vote, second: Vote) -> tx_pb2.AccuseAmnesia:
    return tx_pb2.AccuseAmnesia(vote_a=encode_vote(first), vote_b=encode_vote(second))


def answer(votes: Sequence[Vote], height: int = HEIGHT) -> tx_pb2.AnswerAccusation:
    return tx_pb2.AnswerAccusation(accusation=accusation_key(height, ADDRESS), votes=list(map(encode_vote, votes)))


def accuse(chain: LedgerChain, height: int = HEIGHT, later: SignedType = PREVOTE) -> None:
    first, second = vote(chain, PRECOMMIT, V, 0, height=height), vote(chain, later, W, 3, height=height)
    chain.send("alice", accusation(first, second))


def polka(chain: LedgerChain, round_: int = 1, value: BlockId = W) -> list[Vote]:
    return [vote(chain, PREVOTE, value, round_, name) for name in OTHERS]


def stake(chain: LedgerChain) -> int:
    return chain.state.organizations[ACCUSED].stake_utlk


def refused(chain: LedgerChain, message: tx_pb2.AccuseAmnesia | tx_pb2.AnswerAccusation) -> str:
    with pytest.raises(TalkooError) as error:
        chain.send("bob", message)
    return error.value.code


@pytest.mark.parametrize("later", [PREVOTE, PRECOMMIT])
def test_an_accusation_that_nobody_answers_is_punished_at_its_deadline_and_once(
    chain: LedgerChain, later: SignedType
) -> None:
    before = stake(chain)
    accuse(chain, later=later)
    deadline = chain.height + WINDOW
    while chain.height < deadline - 1:
        chain.block()
    assert stake(chain) == before
    chain.block()
    assert stake(chain) == before // 2
    assert chain.state.organizations[ACCUSED].power == 0
    (event,) = chain.events("validator_punished")
    assert dict(event.attributes)["fault"] == "amnesia"
    assert chain.state.accusations.live() == []
    fault = Misbehavior("duplicate_vote", ADDRESS, 1, HEIGHT, 1, 1)
    chain.block(misbehavior=(fault,))
    assert stake(chain) == before // 2
    assert replay(chain.genesis, chain.blocks).info() == chain.application.info()


def test_prevotes_that_allowed_the_later_vote_clear_the_accused(chain: LedgerChain) -> None:
    before = stake(chain)
    accuse(chain)
    chain.send("bob", answer(polka(chain)))
    assert refused(chain, answer(polka(chain))) == "already_answered"
    first, second = vote(chain, PRECOMMIT, V, 0), vote(chain, PREVOTE, W, 3)
    assert refused(chain, accusation(first, second)) == "already_accused"
    chain.skip(WINDOW + 1)
    assert stake(chain) == before
    assert chain.events("validator_punished") == []
    assert chain.state.accusations.live() == [], "and it is forgotten when it could not be made again"
    assert refused(chain, accusation(first, second)) == "wrong_height"


def test_what_is_no_excuse_does_not_clear(chain: LedgerChain) -> None:
    accuse(chain)
    good = polka(chain)
    for votes in (
        good[:2],
        [*good[:2], good[1]],
        polka(chain, round_=3),
        polka(chain, value=V),
        polka(chain, value=NIL_BLOCK_ID),
        [vote(chain, PRECOMMIT, W, 1, name) for name in OTHERS],
        [vote(chain, PREVOTE, W, 1, name, HEIGHT + 1) for name in OTHERS],
        [*good[:2], vote(chain, PREVOTE, W, 2, OTHERS[2])],
    ):
        assert refused(chain, answer(votes)) == "no_excuse"
    forged = [*good[:2], replace(good[2], signature=bytes(64))]
    assert refused(chain, answer(forged)) == "bad_vote"
    assert (
        refused(chain, tx_pb2.AnswerAccusation(accusation=accusation_key(HEIGHT, ADDRESS), votes=[b"x"])) == "bad_vote"
    )
    assert refused(chain, answer(good, height=HEIGHT - 1)) == "unknown_accusation"
    chain.send("bob", answer([*good, vote(chain, PREVOTE, W, 2, OTHERS[0])]))


def test_what_accuses_nobody_is_refused(chain: LedgerChain) -> None:
    lock, later = vote(chain, PRECOMMIT, V, 0), vote(chain, PREVOTE, W, 3)
    cases = {
        "no_accusation": [
            (later, lock),
            (lock, vote(chain, PREVOTE, NIL_BLOCK_ID, 3)),
            (lock, vote(chain, PREVOTE, V, 3)),
            (lock, vote(chain, PREVOTE, W, 0)),
            (lock, vote(chain, PREVOTE, W, 3, OTHERS[0])),
            (lock, vote(chain, PREVOTE, W, 3, height=HEIGHT + 1)),
        ],
        "bad_vote": [
            (replace(lock, signature=bytes(64)), later),
            (lock, replace(later, signature=bytes(64))),
            (lock, replace(later, extension=b"x", extension_signature=bytes(64))),
        ],
        "unknown_validator": [
            (replace(lock, validator_address=bytes(20)), replace(later, validator_address=bytes(20)))
        ],
        "wrong_height": [
            (vote(chain, PRECOMMIT, V, 0, height=99), vote(chain, PREVOTE, W, 3, height=99)),
        ],
    }
    for code, pairs in cases.items():
        for first, second in pairs:
            assert refused(chain, accusation(first, second)) == code
    assert refused(chain, tx_pb2.AccuseAmnesia(vote_a=b"x", vote_b=encode_vote(later))) == "bad_vote"
    assert refused(chain, tx_pb2.AccuseAmnesia(vote_b=encode_vote(later))) == "bad_field"
    assert chain.state.accusations.live() == []


def test_who_was_punished_already_is_not_accused_again(chain: LedgerChain) -> None:
    chain.block(misbehavior=(Misbehavior("duplicate_vote", ADDRESS, 1, HEIGHT, 1, 1),))
    first, second = vote(chain, PRECOMMIT, V, 0), vote(chain, PREVOTE, W, 3)
    assert refused(chain, accusation(first, second)) == "already_punished"


def test_an_accusation_comes_and_ends_before_the_stake_behind_the_votes_is_free() -> None:
    for unbonding_blocks in (500, 600, 1_000):
        window = answer_blocks(unbonding_blocks)
        latest_accusation, started_unbonding = HEIGHT + window, HEIGHT - EFFECT_HEIGHTS + 1
        assert latest_accusation + window < started_unbonding + unbonding_blocks


def test_the_validators_of_past_heights_are_those_that_decided_them() -> None:
    chain = LedgerChain(make_genesis(epoch_blocks=10, unbonding_blocks=UNBONDING))
    powers = {0: {o.validator_key: o.power for o in chain.state.organizations.all()}}
    for number in range(1, 60):
        if number % 7 == 0:
            chain.send(OTHERS[number % 3], tx_pb2.Bond(subject=OTHERS[number % 3], amount_utlk=UTLK_PER_TLK))
        else:
            chain.block()
        if number == 33:
            chain.block(misbehavior=(Misbehavior("duplicate_vote", ADDRESS, 1, 31, 1, 1),))
        powers[chain.height] = {o.validator_key: o.power for o in chain.state.organizations.all() if o.power}
    for height in range(1, chain.height + EFFECT_HEIGHTS):
        made_by = max((at for at in powers if at <= max(height - EFFECT_HEIGHTS, 0)), default=0)
        found = {v.public_key: v.power for v in validators_at(chain.state, height).validators}
        assert found == powers[made_by], f"height {height}"


def test_sets_that_nothing_can_be_about_any_more_are_forgotten() -> None:
    chain = LedgerChain(make_genesis(epoch_blocks=5, unbonding_blocks=490))
    for _ in range(60):
        chain.send(OTHERS[0], tx_pb2.Bond(subject=OTHERS[0], amount_utlk=UTLK_PER_TLK))
        chain.skip(9)
    sets = chain.state.validator_sets.live()
    assert sets[0].from_height > 1
    assert sets[1].from_height > chain.height - 490 - 1
    assert len(sets) < 60
    with pytest.raises(NotFound):
        validators_at(chain.state, sets[0].from_height - 1)


def test_errors_are_of_the_right_family(chain: LedgerChain) -> None:
    first, second = vote(chain, PRECOMMIT, V, 0), vote(chain, PREVOTE, W, 3)
    with pytest.raises(InvalidInput):
        chain.send("bob", accusation(second, first))
    accuse(chain)
    with pytest.raises(Conflict):
        chain.send("bob", accusation(first, second))
