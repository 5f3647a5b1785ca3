"""Blocks follow blocks: what a header must say, when a commit proves a decision, when a time is believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from talkoo_consensus.chain import ChainState, advance, check_block, genesis_state, make_block, timely
from talkoo_consensus.encoding import block_id_of, vote_sign_bytes
from talkoo_consensus.types import (
    ABSENT_SIG,
    EMPTY_COMMIT,
    Block,
    BlockId,
    BlockIdFlag,
    Commit,
    CommitSig,
    SignedType,
    TxResult,
    Vote,
)
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_consensus.verify import is_block_of, verify_commit, verify_proposal, verify_vote, vote_of_commit

from talkoo_core.errors import InvalidInput
from talkoo_core.signing import PrivateKey, PublicKey
from talkoo_sim.consensus_table import CHAIN_ID, TIME_NS, Table

KEYS = {key.public.address: key for key in (PrivateKey.from_seed(bytes([i]) * 32) for i in range(4))}


def _genesis() -> ChainState:
    return genesis_state(CHAIN_ID, TIME_NS, [Validator.of(key.public.raw, 10) for key in KEYS.values()], b"")


def _sign(vote: Vote) -> Vote:
    return replace(vote, signature=KEYS[vote.validator_address].sign(vote_sign_bytes(CHAIN_ID, vote)))


def _commit(validators: ValidatorSet, height: int, block_id: BlockId, signers: int) -> Commit:
    places = []
    for index, validator in enumerate(validators.validators):
        vote = _sign(Vote(SignedType.PRECOMMIT, height, 0, block_id, TIME_NS + index, validator.address, index))
        sig = CommitSig(BlockIdFlag.COMMIT, validator.address, vote.timestamp_ns, vote.signature)
        places.append(sig if index < signers else ABSENT_SIG)
    return Commit(height, 0, block_id, tuple(places))


def _first(state: ChainState) -> Block:
    return make_block(state, [b"tx"], EMPTY_COMMIT, TIME_NS + 5, state.validators.proposer.address)


def test_blocks_follow_each_other_with_results_and_validators_of_the_ones_before() -> None:
    state = _genesis()
    block = _first(state)
    check_block(state, block)
    block_id = block_id_of(block)
    newcomer = Validator.of(PrivateKey.from_seed(bytes([9]) * 32).public.raw, 5)
    after = advance(state, block, block_id, [TxResult(gas_used=3)], b"h" * 32, [newcomer])
    assert (after.height, len(after.validators), len(after.next_validators)) == (2, 4, 5)
    commit = _commit(state.validators, 1, block_id, 3)
    second = make_block(after, [], commit, TIME_NS, after.validators.proposer.address)
    assert second.header.time_ns == block.header.time_ns + 1
    assert second.header.app_hash == b"h" * 32
    check_block(after, second)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chain_id", "other"),
        ("height", 2),
        ("version_block", 10),
        ("version_app", 1),
        ("last_block_id", BlockId(b"x" * 32, 1, b"y" * 32)),
        ("last_commit_hash", b"x" * 32),
        ("data_hash", b"x" * 32),
        ("validators_hash", b"x" * 32),
        ("next_validators_hash", b"x" * 32),
        ("consensus_hash", b"x" * 32),
        ("app_hash", b"x" * 32),
        ("last_results_hash", b"x" * 32),
        ("evidence_hash", b"x" * 32),
        ("proposer_address", b"x" * 20),
        ("time_ns", TIME_NS),
    ],
)
def test_a_header_field_that_the_state_does_not_demand_is_refused(field: str, value: Any) -> None:
    state = _genesis()
    block = _first(state)
    with pytest.raises(InvalidInput) as refused:
        check_block(state, replace(block, header=replace(block.header, **{field: value})))
    assert refused.value.code == "bad_block"


def test_a_commit_needs_more_than_two_thirds_of_the_power() -> None:
    state = _genesis()
    block_id = block_id_of(_first(state))
    verify_commit(CHAIN_ID, state.validators, block_id, 1, _commit(state.validators, 1, block_id, 3))
    for signers in (0, 1, 2):
        with pytest.raises(InvalidInput, match="more than 2/3"):
            verify_commit(CHAIN_ID, state.validators, block_id, 1, _commit(state.validators, 1, block_id, signers))


def test_a_commit_with_a_wrong_place_is_refused() -> None:
    state = _genesis()
    block_id = block_id_of(_first(state))
    good = _commit(state.validators, 1, block_id, 4)
    first = good.signatures[0]
    wrong_places = [
        replace(first, signature=bytes(64)),
        replace(first, flag=BlockIdFlag.NIL),
        replace(first, timestamp_ns=first.timestamp_ns + 1),
        replace(first, validator_address=good.signatures[1].validator_address),
        replace(ABSENT_SIG, signature=first.signature),
    ]
    bad = [replace(good, signatures=(place, *good.signatures[1:])) for place in wrong_places]
    bad += [replace(good, signatures=good.signatures[:3]), replace(good, height=2), replace(good, round=1)]
    for commit in bad:
        with pytest.raises(InvalidInput) as refused:
            verify_commit(CHAIN_ID, state.validators, block_id, 1, commit)
        assert refused.value.code == "bad_commit"


def test_votes_are_bound_to_chain_validator_and_content() -> None:
    state = _genesis()
    validator, other = state.validators.validators[:2]
    block_id = block_id_of(_first(state))
    vote = _sign(Vote(SignedType.PREVOTE, 1, 0, block_id, TIME_NS, validator.address, 0))
    assert verify_vote(vote, CHAIN_ID, validator)
    assert not verify_vote(vote, "other-chain", validator)
    assert not verify_vote(vote, CHAIN_ID, other)
    assert not verify_vote(replace(vote, type=SignedType.PRECOMMIT), CHAIN_ID, validator)
    assert not verify_vote(replace(vote, round=1), CHAIN_ID, validator)
    assert not verify_vote(replace(vote, extension=b"x"), CHAIN_ID, validator)


def test_a_proposal_is_bound_to_its_proposer_and_its_block() -> None:
    table = Table()
    block = table.block()
    proposal = table.proposal(block).proposal
    proposer = table.validators.proposer_of_round(0)
    assert verify_proposal(proposal, CHAIN_ID, proposer)
    assert not verify_proposal(proposal, CHAIN_ID, table.validators.proposer_of_round(1))
    assert not verify_proposal(replace(proposal, pol_round=0), CHAIN_ID, proposer)
    assert is_block_of(proposal, block)
    assert not is_block_of(proposal, table.block(b"other"))
    assert not is_block_of(replace(proposal, timestamp_ns=proposal.timestamp_ns + 1), block)


@pytest.mark.parametrize(
    ("now_ns", "expected"),
    [(89, False), (90, True), (100, True), (1110, True), (1111, False)],
)
def test_a_time_is_believed_within_precision_and_delay(now_ns: int, expected: bool) -> None:
    assert timely(100, now_ns, precision_ns=10, delay_ns=1000) is expected


def test_later_rounds_believe_slower_messages() -> None:
    assert not timely(100, 1150, 0, precision_ns=10, delay_ns=1000)
    assert timely(100, 1150, 1, precision_ns=10, delay_ns=1000)
    assert timely(100, 10**18, 10_000, precision_ns=10, delay_ns=1000)


@pytest.mark.parametrize(
    ("powers", "why"),
    [([0], "power 0"), ([-1], "power -1"), ([2**62], "it must be"), ([(2**63 - 1) // 8, 1], "would exceed")],
)
def test_impossible_first_sets_are_refused(powers: list[int], why: str) -> None:
    members = [Validator.of(key.public.raw, power) for key, power in zip(KEYS.values(), powers, strict=False)]
    with pytest.raises(InvalidInput, match=why):
        ValidatorSet.create(members)


def test_impossible_changes_are_refused() -> None:
    validators = _genesis().validators
    stranger = Validator.of(PrivateKey.from_seed(bytes([8]) * 32).public.raw, 0)
    member = validators.validators[0]
    with pytest.raises(InvalidInput, match="not in the set"):
        validators.update([stranger])
    with pytest.raises(InvalidInput, match="twice"):
        validators.update([member, member])
    with pytest.raises(InvalidInput, match="no validator"):
        validators.update([replace(v, power=0) for v in validators.validators])
    with pytest.raises(InvalidInput, match="address of its public key"):
        validators.update([replace(member, address=b"x" * 20)])


def test_each_signature_is_computed_once_as_a_vote_in_a_commit_in_a_block_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[bytes] = []
    verify = PublicKey.verify

    def counting(key: PublicKey, signature: bytes, message: bytes) -> bool:
        computed.append(signature)
        return verify(key, signature, message)

    monkeypatch.setattr(PublicKey, "verify", counting)
    state = _genesis()
    block = make_block(state, [b"once"], EMPTY_COMMIT, TIME_NS + 77, state.validators.proposer.address)
    block_id = block_id_of(block)
    commit = _commit(state.validators, 1, block_id, 4)
    for index, (sig, validator) in enumerate(zip(commit.signatures, state.validators.validators, strict=True)):
        for _ in range(2):
            assert verify_vote(vote_of_commit(commit, index, sig), CHAIN_ID, validator)
    assert computed == [sig.signature for sig in commit.signatures]
    after = advance(state, block, block_id, [], b"")
    second = make_block(after, [], commit, TIME_NS, after.validators.proposer.address)
    for _ in range(3):
        verify_commit(CHAIN_ID, state.validators, block_id, 1, commit)
        check_block(after, second)
    assert len(computed) == 4
    forged = replace(vote_of_commit(commit, 0, commit.signatures[0]), signature=bytes(64))
    for _ in range(2):
        assert not verify_vote(forged, CHAIN_ID, state.validators.validators[0]), "and a wrong one is never remembered"
    assert len(computed) == 6
    for wrong in ("another chain", CHAIN_ID + " "):
        assert not verify_vote(vote_of_commit(commit, 0, commit.signatures[0]), wrong, state.validators.validators[0])
