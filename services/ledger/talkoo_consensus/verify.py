"""Signatures of votes, proposals and commits. Pure; the shell checks before an event enters the driver.

A precommit is seen as a vote, then in the commit of its block, in the next block and in the answers of peers. What was
verified is remembered, so that a node computes each signature once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from talkoo_consensus.encoding import block_id_of, extension_sign_bytes, proposal_sign_bytes, vote_sign_bytes
from talkoo_consensus.types import (
    ABSENT_SIG,
    MAX_EXTENSION_BYTES,
    NIL_BLOCK_ID,
    Block,
    BlockId,
    BlockIdFlag,
    Commit,
    CommitSig,
    Proposal,
    SignedType,
    Vote,
)
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_core.errors import InvalidInput
from talkoo_core.signing import PublicKey

VOTES_REMEMBERED: Final = 8_192
"""Those rightly signed alone, some 5 MiB: the votes of a hundred validators for dozens of heights."""


@lru_cache(maxsize=VOTES_REMEMBERED)
def _verify_plain(vote: Vote, chain_id: str, public_key: bytes) -> None:
    """A vote without extension. Raises ValueError where its signature is wrong: an exception is not remembered, so that
    garbage drives nothing out."""
    if not PublicKey(public_key).verify(vote.signature, vote_sign_bytes(chain_id, vote)):
        raise ValueError


def verify_vote(vote: Vote, chain_id: str, validator: Validator, *, extensions: bool = False) -> bool:
    """Whether the validator signed this vote. `extensions`: precommits for a block must carry a signed extension;
    otherwise, and on every other vote, an extension is refused."""
    if vote.type not in (SignedType.PREVOTE, SignedType.PRECOMMIT) or vote.validator_address != validator.address:
        return False
    if extensions and vote.type is SignedType.PRECOMMIT and not vote.block_id.is_nil:
        return _verify_extended(vote, chain_id, PublicKey(validator.public_key))
    if vote.extension or vote.extension_signature:
        return False
    try:
        _verify_plain(vote, chain_id, validator.public_key)
    except ValueError:
        return False
    return True


def _verify_extended(vote: Vote, chain_id: str, key: PublicKey) -> bool:
    return (
        len(vote.extension) <= MAX_EXTENSION_BYTES
        and key.verify(vote.signature, vote_sign_bytes(chain_id, vote))
        and key.verify(vote.extension_signature, extension_sign_bytes(chain_id, vote))
    )


def verify_proposal(proposal: Proposal, chain_id: str, proposer: Validator) -> bool:
    """Whether the proposer (`validators.proposer_of_round(proposal.round)`) signed this proposal."""
    if not -1 <= proposal.pol_round < proposal.round or proposal.block_id.is_nil:
        return False
    return PublicKey(proposer.public_key).verify(proposal.signature, proposal_sign_bytes(chain_id, proposal))


def is_block_of(proposal: Proposal, block: Block) -> bool:
    """Whether this is the block the proposal names, at its height and with its time."""
    header = block.header
    stands = header.height == proposal.height and header.time_ns == proposal.timestamp_ns
    return stands and block_id_of(block) == proposal.block_id


def verify_commit(chain_id: str, validators: ValidatorSet, block_id: BlockId, height: int, commit: Commit) -> None:
    """That validators with more than 2/3 of the power precommitted the block; every signature given must be right.

    Raises InvalidInput: `bad_commit`.
    """
    if commit.height != height or commit.block_id != block_id:
        raise _bad(f"it is for block {commit.block_id} at height {commit.height}, not {block_id} at {height}")
    if len(commit.signatures) != len(validators):
        raise _bad(f"it has {len(commit.signatures)} places for {len(validators)} validators")
    power = 0
    for index, (sig, validator) in enumerate(zip(commit.signatures, validators.validators, strict=True)):
        if sig.flag is BlockIdFlag.ABSENT:
            if sig != ABSENT_SIG:
                raise _bad(f"place {index} is absent and yet holds something")
            continue
        if not verify_vote(vote_of_commit(commit, index, sig), chain_id, validator):
            raise _bad(f"the signature of validator {validator.address.hex()} is wrong")
        if sig.flag is BlockIdFlag.COMMIT:
            power += validator.power
    if 3 * power <= 2 * validators.total_power:
        raise _bad(f"it holds power {power} of {validators.total_power}; more than 2/3 is needed")


def vote_of_commit(commit: Commit, index: int, sig: CommitSig) -> Vote:
    """The precommit that stands behind a place of a commit."""
    return Vote(
        type=SignedType.PRECOMMIT,
        height=commit.height,
        round=commit.round,
        block_id=commit.block_id if sig.flag is BlockIdFlag.COMMIT else NIL_BLOCK_ID,
        timestamp_ns=sig.timestamp_ns,
        validator_address=sig.validator_address,
        validator_index=index,
        signature=sig.signature,
    )


def _bad(why: str) -> InvalidInput:
    return InvalidInput(f"the commit proves no decision: {why}; fetch it from another peer", code="bad_commit")
