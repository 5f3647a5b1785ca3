"""Double votes: encoded as CometBFT does, verified as CometBFT does, pooled, put into blocks once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talkoo_consensus import encoding
from talkoo_consensus.chain import advance, check_block, genesis_state, make_block
from talkoo_consensus.evidence import (
    MAX_PENDING_PER_VALIDATOR,
    EvidenceParams,
    EvidencePool,
    PastHeight,
    conflicts,
    form,
    verify_evidence,
)
from talkoo_consensus.types import (
    ABSENT_SIG,
    EMPTY_COMMIT,
    MAX_EVIDENCE_BYTES,
    NIL_BLOCK_ID,
    Block,
    BlockId,
    BlockIdFlag,
    Commit,
    CommitSig,
    ConflictingVotes,
    DuplicateVoteEvidence,
    SignedType,
    Vote,
)
from talkoo_consensus.validators import Validator, ValidatorSet

from talkoo_core.errors import Corrupt, InvalidInput
from talkoo_core.signing import PrivateKey

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text())
CHAIN = "talkoo-local"
TIME_NS = 1_700_000_000 * 10**9
BLOCK_NS = 10**9
raw = bytes.fromhex


def _made(entry: dict[str, Any]) -> tuple[ConflictingVotes, PastHeight]:
    validators = ValidatorSet.create([Validator.of(raw(one["key"]), one["power"]) for one in entry["initial"]])
    first, second = (encoding.decode_vote(raw(vote)) for vote in entry["votes"])
    past = PastHeight(entry["time"]["seconds"] * 10**9 + entry["time"]["nanos"], validators)
    return ConflictingVotes(first, second), past


@pytest.mark.parametrize("entry", VECTORS["evidence"], ids=range(len(VECTORS["evidence"])))
def test_conflicting_votes_become_the_evidence_that_cometbft_makes_of_them(entry: dict[str, Any]) -> None:
    votes, past = _made(entry)
    evidence = form(votes, past)
    assert evidence is not None
    assert encoding.encode_evidence(evidence).hex() == entry["wire"]
    assert encoding.decode_evidence(raw(entry["wire"])) == evidence
    assert form(ConflictingVotes(votes.second, votes.first), past) == evidence
    verify_evidence(evidence, entry["chain_id"], past)


@pytest.mark.parametrize("entry", VECTORS["evidence_lists"], ids=lambda entry: entry["count"])
def test_blocks_with_evidence_have_cometbfts_bytes_hashes_and_ids(entry: dict[str, Any]) -> None:
    evidence = tuple(encoding.decode_evidence(raw(one["wire"])) for one in VECTORS["evidence"][: entry["count"]])
    assert encoding.evidence_hash(evidence).hex() == entry["hash"] == entry["evidence_hash"]
    assert len(encoding.encode_evidence_list(evidence)) == entry["size"]
    block = encoding.decode_block(raw(entry["block"]))
    assert block.evidence == evidence
    assert encoding.encode_block(block).hex() == entry["block"]
    assert encoding.block_id_of(block).hash.hex() == entry["id"]["hash"]
    assert encoding.block_id_of(block).part_set_hash.hex() == entry["id"]["parts"]


def test_no_byte_of_evidence_can_be_changed_unnoticed() -> None:
    """With another bit it reads as another thing, which proves nothing, or it is malformed."""
    entry = VECTORS["evidence"][3]
    _, past = _made(entry)
    wire = raw(entry["wire"])
    for bit in range(0, 8 * len(wire), 7):
        changed = bytearray(wire)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((Corrupt, InvalidInput)):
            verify_evidence(encoding.decode_evidence(bytes(changed)), entry["chain_id"], past)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_that_are_no_evidence_are_malformed(data: bytes) -> None:
    with pytest.raises(Corrupt) as error:
        encoding.decode_evidence(data)
    assert error.value.code == "malformed"


# A chain with four validators, one of which votes twice

KEYS = {key.public.address: key for key in (PrivateKey.from_seed(bytes([n]) * 32) for n in range(1, 5))}
LIAR = sorted(KEYS)[0]


def _block_id(number: int) -> BlockId:
    return BlockId(number.to_bytes(32, "big"), 1, bytes([7]) * 32)


class Chain:
    """Blocks as they are decided, and a pool that follows them."""

    def __init__(self, max_age_blocks: int = 10, max_age_ns: int = BLOCK_NS) -> None:
        validators = [Validator.of(key.public.raw, 10 + n) for n, key in enumerate(KEYS.values())]
        self.state = genesis_state(CHAIN, TIME_NS, validators, b"")
        self.past: dict[int, PastHeight] = {}
        self.params = EvidenceParams(max_age_blocks, max_age_ns)
        self.pool = self.new_pool()
        self.commit = EMPTY_COMMIT

    def new_pool(self) -> EvidencePool:
        return EvidencePool(self.params, self.past.get)

    def propose(self, *evidence: DuplicateVoteEvidence) -> Block:
        time_ns = self.state.last_time_ns + BLOCK_NS
        return make_block(self.state, [], self.commit, time_ns, self.state.validators.proposer.address, evidence)

    def decide(self, *evidence: DuplicateVoteEvidence) -> tuple[DuplicateVoteEvidence, ...]:
        """The next block; returns what the pool wants to tell others."""
        block = self.propose(*evidence)
        check_block(self.state, block, self.pool.check)
        block_id = encoding.block_id_of(block)
        self.past[self.state.height] = PastHeight(block.header.time_ns, self.state.validators)
        self.commit = self._commit(block_id)
        self.state = advance(self.state, block, block_id, [], b"")
        return self.pool.after_block(self.state, block)

    def _commit(self, block_id: BlockId) -> Commit:
        signatures = []
        for index, validator in enumerate(self.state.validators.validators):
            vote = self.vote(block_id, validator.address, type_=SignedType.PRECOMMIT)
            assert vote.validator_index == index
            signatures.append(CommitSig(BlockIdFlag.COMMIT, validator.address, vote.timestamp_ns, vote.signature))
        return Commit(self.state.height, 0, block_id, tuple(signatures))

    def vote(
        self, value: BlockId, address: bytes = LIAR, height: int = 0, type_: SignedType = SignedType.PREVOTE, **how: Any
    ) -> Vote:
        place = self.state.validators.find(address)
        assert place is not None
        vote = replace(
            Vote(type_, height or self.state.height, 0, value, TIME_NS + 7, address, place[0]),
            **how,
        )
        return replace(vote, signature=KEYS[address].sign(encoding.vote_sign_bytes(CHAIN, vote)))

    def lie(self, height: int = 0, address: bytes = LIAR, **how: Any) -> ConflictingVotes:
        return ConflictingVotes(
            self.vote(_block_id(1), address, height, **how), self.vote(NIL_BLOCK_ID, address, height, **how)
        )

    def evidence(self, height: int, address: bytes = LIAR, **how: Any) -> DuplicateVoteEvidence:
        evidence = form(self.lie(height, address, **how), self.past[height])
        assert evidence is not None
        return evidence


@pytest.fixture
def chain() -> Chain:
    return Chain()


def test_a_double_vote_of_the_height_under_way_waits_for_its_decision_and_then_stands_in_one_block(
    chain: Chain,
) -> None:
    chain.decide()
    assert chain.pool.report(chain.lie(), chain.state) is None
    assert chain.pool.pending(chain.state) == ()
    told = chain.decide()
    assert told == chain.pool.pending(chain.state)
    (evidence,) = told
    assert evidence.timestamp_ns == chain.past[2].time_ns
    assert (evidence.validator_power, evidence.total_voting_power) == (
        chain.state.validators.validators[evidence.vote_a.validator_index].power,
        chain.state.validators.total_power,
    )
    chain.decide(evidence)
    assert chain.pool.pending(chain.state) == ()
    with pytest.raises(InvalidInput, match="in a block already"):
        check_block(chain.state, chain.propose(evidence), chain.pool.check)
    assert not chain.pool.add(evidence, chain.state)


def test_a_double_vote_of_a_decided_height_is_evidence_at_once(chain: Chain) -> None:
    for _ in range(3):
        chain.decide()
    evidence = chain.pool.report(chain.lie(2), chain.state)
    assert evidence == chain.evidence(2)
    assert chain.pool.report(chain.lie(2), chain.state) is None


def test_other_double_votes_of_the_same_validator_and_height_are_the_same_offence(chain: Chain) -> None:
    chain.decide()
    chain.decide()
    assert chain.pool.add(chain.evidence(1), chain.state)
    for again in (chain.evidence(1, round=1), chain.evidence(1, type_=SignedType.PRECOMMIT)):
        assert not chain.pool.add(again, chain.state)
        with pytest.raises(InvalidInput, match="in a block already"):
            check_block(chain.state, chain.propose(chain.evidence(1), again), chain.pool.check)
    assert chain.pool.add(chain.evidence(2), chain.state)
    assert chain.pool.add(chain.evidence(1, sorted(KEYS)[1]), chain.state)


BAD: dict[str, Any] = {
    "another power": lambda e: replace(e, validator_power=e.validator_power + 1),
    "another total": lambda e: replace(e, total_voting_power=e.total_voting_power - 1),
    "another time": lambda e: replace(e, timestamp_ns=e.timestamp_ns + 1),
    "votes out of order": lambda e: replace(e, vote_a=e.vote_b, vote_b=e.vote_a),
    "the same vote twice": lambda e: replace(e, vote_a=e.vote_b),
    "another round in one vote": lambda e: replace(e, vote_a=replace(e.vote_a, round=1)),
    "another type in one vote": lambda e: replace(e, vote_a=replace(e.vote_a, type=SignedType.PRECOMMIT)),
    "another validator in one vote": lambda e: replace(e, vote_b=replace(e.vote_b, validator_address=sorted(KEYS)[1])),
    "a forged signature": lambda e: replace(e, vote_b=replace(e.vote_b, signature=bytes(64))),
    "another index": lambda e: replace(
        e, vote_a=replace(e.vote_a, validator_index=0), vote_b=replace(e.vote_b, validator_index=0)
    ),
    "a stranger": lambda e: replace(
        e, vote_a=replace(e.vote_a, validator_address=bytes(20)), vote_b=replace(e.vote_b, validator_address=bytes(20))
    ),
    "an extension": lambda e: replace(e, vote_a=replace(e.vote_a, extension=b"x")),
}


@pytest.mark.parametrize("how", BAD)
def test_evidence_that_proves_nothing_is_refused_from_peers_and_in_blocks(chain: Chain, how: str) -> None:
    chain.decide()
    assert chain.evidence(1).vote_a.validator_index != 0
    bad = BAD[how](chain.evidence(1))
    with pytest.raises(InvalidInput) as error:
        chain.pool.add(bad, chain.state)
    assert error.value.code == "bad_evidence"
    with pytest.raises(InvalidInput) as error:
        check_block(chain.state, chain.propose(bad), chain.pool.check)
    assert error.value.code == "bad_evidence"
    assert chain.pool.pending(chain.state) == ()


def test_the_evidence_of_another_chain_proves_nothing(chain: Chain) -> None:
    chain.decide()
    with pytest.raises(InvalidInput, match="signature"):
        verify_evidence(chain.evidence(1), "another", chain.past[1])


def test_evidence_is_too_old_when_it_is_so_in_blocks_and_in_time() -> None:
    for max_age_ns, stands in ((BLOCK_NS, False), (100 * BLOCK_NS, True)):
        chain = Chain(max_age_blocks=4, max_age_ns=max_age_ns)
        for _ in range(5):
            chain.decide()
        evidence = chain.evidence(1)
        assert chain.pool.add(evidence, chain.state), "at its last block"
        chain.decide()
        assert (chain.pool.pending(chain.state) == (evidence,)) is stands
        assert chain.new_pool().add(evidence, chain.state) is stands
        if stands:
            chain.decide(evidence)
        else:
            with pytest.raises(InvalidInput, match="too old"):
                check_block(chain.state, chain.propose(evidence), chain.pool.check)


@pytest.mark.parametrize("unbonding_blocks", [10, 45, 600])
def test_evidence_expires_before_the_stake_behind_it_is_free(unbonding_blocks: int) -> None:
    """Stake that began to unbond in block h - 1 still votes at h, and is free in block h - 1 + unbonding_blocks."""
    chain = Chain(EvidenceParams.within_unbonding(unbonding_blocks).max_age_blocks)
    height = 2
    last_block_with_it = max(last + 1 for last in range(height, 700) if last - height <= chain.params.max_age_blocks)
    assert last_block_with_it < height - 1 + unbonding_blocks


def test_what_is_committed_is_remembered_while_it_could_be_proposed_again_and_not_for_ever() -> None:
    chain = Chain(max_age_blocks=4)
    chain.decide()
    evidence = chain.evidence(1)
    chain.decide(evidence)
    kept = chain.pool.encoded()
    for _ in range(7):
        with pytest.raises(InvalidInput):
            check_block(chain.state, chain.propose(evidence), chain.pool.check)
        chain.decide()
        assert chain.pool.encoded() == kept
    chain.decide()
    assert chain.pool.encoded() == b""


def test_a_restart_forgets_neither_what_is_pending_nor_what_is_committed(chain: Chain) -> None:
    chain.decide()
    chain.decide()
    assert chain.pool.add(chain.evidence(1), chain.state)
    assert chain.pool.add(chain.evidence(2), chain.state)
    assert chain.pool.changed
    chain.decide(chain.evidence(1))
    again = chain.new_pool()
    again.restore(chain.pool.encoded())
    assert again.pending(chain.state) == (chain.evidence(2),)
    assert not again.add(chain.evidence(1), chain.state)
    assert again.encoded() == chain.pool.encoded()


def test_evidence_of_a_peer_that_is_a_block_ahead_is_judged_when_we_are_there(chain: Chain) -> None:
    chain.decide()
    behind, state = chain.new_pool(), chain.state
    chain.decide()
    evidence, forged = chain.evidence(2), replace(chain.evidence(2, sorted(KEYS)[1]), timestamp_ns=1)
    assert not behind.add(evidence, state)
    assert not behind.add(forged, state)
    assert behind.after_block(chain.state, chain.propose()) == (evidence,)


def test_a_block_holds_no_more_evidence_than_its_bound_and_the_rest_follows() -> None:
    chain = Chain(max_age_blocks=400)
    for _ in range(260):
        chain.decide()
    everything = [chain.evidence(height) for height in range(1, 261)]
    with pytest.raises(InvalidInput, match="bytes"):
        check_block(chain.state, chain.propose(*everything), chain.pool.check)
    fits = [
        piece
        for piece in everything
        if len(encoding.encode_evidence_list(everything[: piece.height])) <= MAX_EVIDENCE_BYTES
    ]
    assert 100 < len(fits) < 260
    check_block(chain.state, chain.propose(*fits), chain.pool.check)


def test_one_validator_does_not_fill_the_pool(chain: Chain) -> None:
    for _ in range(MAX_PENDING_PER_VALIDATOR + 2):
        chain.decide()
    taken = [chain.pool.add(chain.evidence(height), chain.state) for height in range(1, MAX_PENDING_PER_VALIDATOR + 3)]
    assert taken == [True] * MAX_PENDING_PER_VALIDATOR + [False] * 2
    assert chain.pool.add(chain.evidence(1, sorted(KEYS)[1]), chain.state)


def test_heights_that_a_node_does_not_hold_are_taken_on_trust_only_when_decided(chain: Chain) -> None:
    chain.decide()
    evidence = chain.evidence(1)
    chain.decide()
    del chain.past[1]
    block = chain.propose(evidence)
    with pytest.raises(InvalidInput, match="does not hold"):
        check_block(chain.state, block, chain.pool.check)
    assert not chain.pool.add(evidence, chain.state)
    check_block(chain.state, block, chain.pool.check_decided)


def test_whoever_knows_no_earlier_height_refuses_all_evidence(chain: Chain) -> None:
    chain.decide()
    with pytest.raises(InvalidInput, match="nothing is known here"):
        check_block(chain.state, chain.propose(chain.evidence(1)))


def test_the_header_must_name_the_evidence_of_its_block(chain: Chain) -> None:
    chain.decide()
    block = replace(chain.propose(), evidence=(chain.evidence(1),))
    with pytest.raises(InvalidInput, match="evidence_hash"):
        check_block(chain.state, block, chain.pool.check)


def test_one_who_was_no_validator_then_leaves_no_evidence(chain: Chain) -> None:
    chain.decide()
    stranger = replace(chain.past[1], validators=ValidatorSet(chain.past[1].validators.validators[:1]))
    gone = chain.past[1].validators.validators[-1].address
    assert form(chain.lie(1, gone), stranger) is None


def test_two_commits_of_one_block_show_who_precommitted_it_and_nil(chain: Chain) -> None:
    """A key that signs for some the block and for others nil is found though no node has seen both votes."""
    chain.decide()
    ours, index = chain.commit, chain.lie(1).first.validator_index
    nil = chain.vote(NIL_BLOCK_ID, height=1, type_=SignedType.PRECOMMIT)
    place = CommitSig(BlockIdFlag.NIL, LIAR, nil.timestamp_ns, nil.signature)
    theirs = replace(ours, signatures=(*ours.signatures[:index], place, *ours.signatures[index + 1 :]))
    (found,) = conflicts(ours, theirs)
    evidence = chain.pool.report(found, chain.state)
    assert evidence is not None
    verify_evidence(evidence, CHAIN, chain.past[1])
    assert {evidence.vote_a, evidence.vote_b} == {nil, found.first}
    absent = replace(ours, signatures=(*ours.signatures[:index], ABSENT_SIG, *ours.signatures[index + 1 :]))
    assert conflicts(ours, ours) == conflicts(absent, theirs) == conflicts(EMPTY_COMMIT, theirs) == ()
    assert conflicts(ours, replace(theirs, round=1)) == ()
