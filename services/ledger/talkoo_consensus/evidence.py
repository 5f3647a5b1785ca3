"""Double votes on their way into a block: formed, verified, kept until a block holds them or they are too old. Pure.

    conflicting votes ─► report ─► (the block of their height is decided) ─┐
    evidence of a peer ──────────────────────────────────────► add ────────┴─► pending ─► a block ─► committed

As CometBFT's `internal/evidence`, with one difference: a validator's double votes at one height are one offence,
whatever their rounds and times, so that a key that signs twice can fill neither the pool nor the blocks.
Bounds: MAX_PENDING_PER_VALIDATOR, MAX_REPORTED, MAX_EARLY, MAX_EVIDENCE_BYTES in a block; what is committed is
remembered while it could still be proposed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from talkoo_consensus.chain import ChainState
from talkoo_consensus.encoding import block_id_key, decode_evidence, encode_evidence, encode_evidence_list
from talkoo_consensus.types import (
    MAX_EVIDENCE_BYTES,
    Block,
    BlockIdFlag,
    Commit,
    ConflictingVotes,
    DuplicateVoteEvidence,
    Vote,
)
from talkoo_consensus.validators import ValidatorSet
from talkoo_consensus.verify import verify_vote, vote_of_commit
from talkoo_core.errors import InvalidInput
from talkoo_core.protowire import BYTES, VARINT, Fields, bytes_field, int_field, message_field
from talkoo_core.signing import ADDRESS_BYTES

MAX_PENDING_PER_VALIDATOR: Final = 4
MAX_REPORTED: Final = 64
"""Conflicting votes that wait for the decision of their height."""
MAX_EARLY: Final = 64
"""Evidence of peers that are one height ahead."""
MAX_AGE_NS: Final = 10**9
"""As in CometBFT, evidence is too old when it is so in blocks and in time; here the blocks decide."""
HEIGHTS_OF_POWER_AFTER_UNBONDING: Final = 2
"""Stake that begins to unbond still votes for so many heights."""
_MAX_KEPT: Final = 1 << 20
_INT64_MAX: Final = 2**63 - 1

Offence: TypeAlias = tuple[int, bytes]
"""Height and validator."""


@dataclass(frozen=True, slots=True)
class EvidenceParams:
    """How old evidence may be: `max_age_blocks` before the last block, or younger than `max_age_ns`."""

    max_age_blocks: int
    max_age_ns: int = MAX_AGE_NS

    @classmethod
    def within_unbonding(cls, unbonding_blocks: int) -> EvidenceParams:
        """So that a block with evidence always comes before the stake that stood behind the votes is free."""
        return cls(max(unbonding_blocks - HEIGHTS_OF_POWER_AFTER_UNBONDING - 1, 1))


@dataclass(frozen=True, slots=True)
class PastHeight:
    """When a block was decided, and by whom."""

    time_ns: int
    validators: ValidatorSet


History: TypeAlias = Callable[[int], PastHeight | None]
"""A decided height; None where this node does not hold it."""


def form(votes: ConflictingVotes, past: PastHeight) -> DuplicateVoteEvidence | None:
    """As a block holds it; None where the voter was no validator. Extensions, which no vote's signature covers, go."""
    found = past.validators.find(votes.first.validator_address)
    if found is None:
        return None
    first, second = (
        replace(vote, extension=b"", extension_signature=b"", validator_index=found[0])
        for vote in sorted((votes.first, votes.second), key=lambda vote: block_id_key(vote.block_id))
    )
    return DuplicateVoteEvidence(first, second, past.validators.total_power, found[1].power, past.time_ns)


def conflicts(ours: Commit, theirs: Commit) -> tuple[ConflictingVotes, ...]:
    """Who precommitted a block in one of two verified commits of it, and nil in the same round in the other."""
    if (ours.height, ours.round, ours.block_id) != (theirs.height, theirs.round, theirs.block_id):
        return ()
    voted = {BlockIdFlag.COMMIT, BlockIdFlag.NIL}
    return tuple(
        ConflictingVotes(vote_of_commit(ours, index, first), vote_of_commit(theirs, index, second))
        for index, (first, second) in enumerate(zip(ours.signatures, theirs.signatures, strict=True))
        if {first.flag, second.flag} == voted
    )


def verify_evidence(evidence: DuplicateVoteEvidence, chain_id: str, past: PastHeight) -> None:
    """That one validator of that height signed both votes, and that the rest is what the chain says.

    Raises InvalidInput: `bad_evidence`.
    """
    vote_a, vote_b = evidence.vote_a, evidence.vote_b
    if _place(vote_a) != _place(vote_b):
        raise _bad("its votes are of different validators, heights, rounds or types")
    if block_id_key(vote_a.block_id) >= block_id_key(vote_b.block_id):
        raise _bad("its votes are for the same block, or not in the order of their block ids")
    found = past.validators.find(evidence.validator_address)
    if found is None or found[0] != vote_a.validator_index:
        raise _bad(f"{evidence.validator_address.hex()} is no validator of height {evidence.height}")
    if (evidence.validator_power, evidence.total_voting_power) != (found[1].power, past.validators.total_power):
        raise _bad("its voting powers are not those of its height")
    if evidence.timestamp_ns != past.time_ns:
        raise _bad("its time is not that of the block of its height")
    if not (verify_vote(vote_a, chain_id, found[1]) and verify_vote(vote_b, chain_id, found[1])):
        raise _bad("a signature is wrong")


class EvidencePool:
    """What this node knows of double votes. Deterministic; `history` is asked only for decided heights."""

    def __init__(self, params: EvidenceParams, history: History) -> None:
        self._params = params
        self._history = history
        self._pending: dict[Offence, DuplicateVoteEvidence] = {}
        self._committed: set[Offence] = set()
        self._reported: dict[Offence, ConflictingVotes] = {}
        self._early: dict[Offence, DuplicateVoteEvidence] = {}
        self.changed = False
        """Whether something must be written; whoever writes `encoded` resets it."""

    def report(self, votes: ConflictingVotes, chain: ChainState) -> DuplicateVoteEvidence | None:
        """Conflicting votes, verified, of the height under way or a decided one. Returns evidence new to this node.

        Those of the height under way become evidence in `after_block`, when the time of its block is known.
        """
        offence = votes.first.height, votes.first.validator_address
        if votes.first.height > chain.last_height:
            if len(self._reported) < MAX_REPORTED:
                self._reported.setdefault(offence, votes)
            return None
        past = self._history(votes.first.height)
        evidence = None if past is None else form(votes, past)
        return evidence if evidence is not None and self._keep(evidence, chain) else None

    def add(self, evidence: DuplicateVoteEvidence, chain: ChainState) -> bool:
        """Evidence of a peer. True when it is new and right, to be passed on; False when it is of no use here.

        Raises InvalidInput (`bad_evidence`): no honest node sends that.
        """
        if evidence.height > chain.last_height:
            if evidence.height == chain.height and len(self._early) < MAX_EARLY:
                self._early.setdefault(_offence(evidence), evidence)
            return False
        if not self._wanted(evidence, chain):
            return False
        past = self._history(evidence.height)
        if past is None:
            return False
        verify_evidence(evidence, chain.chain_id, past)
        return self._keep(evidence, chain)

    def pending(self, chain: ChainState) -> tuple[DuplicateVoteEvidence, ...]:
        """For the next block, oldest first, as much as may stand in it."""
        chosen: list[DuplicateVoteEvidence] = []
        size = 0
        for _, evidence in sorted(self._pending.items()):
            size += len(encode_evidence_list([evidence]))
            if size > MAX_EVIDENCE_BYTES:
                break
            if not self._expired(evidence, chain):
                chosen.append(evidence)
        return tuple(chosen)

    def check(self, chain: ChainState, evidence: Sequence[DuplicateVoteEvidence]) -> None:
        """That a block which follows `chain` may hold this. Raises InvalidInput: `bad_evidence`."""
        self._check(chain, evidence, decided=False)

    def check_decided(self, chain: ChainState, evidence: Sequence[DuplicateVoteEvidence]) -> None:
        """The same for a block that > 2/3 have decided: heights that this node does not hold are taken on trust."""
        self._check(chain, evidence, decided=True)

    def after_block(self, chain: ChainState, block: Block) -> tuple[DuplicateVoteEvidence, ...]:
        """`block` was decided and `chain` is the state behind it. Returns evidence new to this node, to be told."""
        for evidence in block.evidence:
            self._committed.add(_offence(evidence))
            self._pending.pop(_offence(evidence), None)
            self.changed = True
        self._forget_what_expired(chain)
        reported, self._reported = self._reported, {}
        early, self._early = self._early, {}
        new = [self.report(votes, chain) for votes in reported.values()]
        found = [evidence for evidence in new if evidence is not None]
        for evidence in early.values():
            try:
                if self.add(evidence, chain):
                    found.append(evidence)
            except InvalidInput:
                continue  # a peer said it before anybody could judge it; nobody is to blame any more
        return tuple(found)

    def all_pending(self) -> tuple[DuplicateVoteEvidence, ...]:
        """For a peer that has just connected."""
        return tuple(evidence for _, evidence in sorted(self._pending.items()))

    def encoded(self) -> bytes:
        """What survives a restart: pending evidence, and which offences are committed."""
        return b"".join(message_field(1, encode_evidence(evidence)) for evidence in self.all_pending()) + b"".join(
            message_field(2, int_field(1, height) + bytes_field(2, address))
            for height, address in sorted(self._committed)
        )

    def restore(self, data: bytes) -> None:
        """What `encoded` gave. Raises Corrupt."""
        fields = Fields(data, "store of evidence", {1: BYTES, 2: BYTES})
        for item in fields.repeated(1, most=_MAX_KEPT):
            evidence = decode_evidence(item)
            self._pending[_offence(evidence)] = evidence
        for item in fields.repeated(2, most=_MAX_KEPT):
            offence = Fields(item, "offence", {1: VARINT, 2: BYTES})
            height = offence.integer(1, lowest=1, highest=_INT64_MAX)
            self._committed.add((height, offence.blob(2, longest=ADDRESS_BYTES)))

    def _check(self, chain: ChainState, evidence: Sequence[DuplicateVoteEvidence], *, decided: bool) -> None:
        if len(encode_evidence_list(evidence)) > MAX_EVIDENCE_BYTES:
            raise _bad(f"a block holds at most {MAX_EVIDENCE_BYTES} bytes of it")
        seen: set[Offence] = set()
        for piece in evidence:
            offence = _offence(piece)
            if offence in seen or offence in self._committed:
                raise _bad(f"{offence[1].hex()} at height {offence[0]} is in a block already")
            seen.add(offence)
            if piece.height > chain.last_height or self._expired(piece, chain):
                raise _bad(f"height {piece.height} is too old or not decided yet")
            if self._pending.get(offence) == piece:
                continue
            past = self._history(piece.height)
            if past is not None:
                verify_evidence(piece, chain.chain_id, past)
            elif not decided:
                raise _bad(f"this node does not hold height {piece.height} and cannot judge it")

    def _wanted(self, evidence: DuplicateVoteEvidence, chain: ChainState) -> bool:
        offence = _offence(evidence)
        known = offence in self._committed or offence in self._pending
        of_validator = sum(address == offence[1] for _, address in self._pending)
        return not known and of_validator < MAX_PENDING_PER_VALIDATOR and not self._expired(evidence, chain)

    def _keep(self, evidence: DuplicateVoteEvidence, chain: ChainState) -> bool:
        if not self._wanted(evidence, chain):
            return False
        self._pending[_offence(evidence)] = evidence
        self.changed = True
        return True

    def _expired(self, evidence: DuplicateVoteEvidence, chain: ChainState) -> bool:
        too_many_blocks = chain.last_height - evidence.height > self._params.max_age_blocks
        return too_many_blocks and chain.last_time_ns - evidence.timestamp_ns > self._params.max_age_ns

    def _forget_what_expired(self, chain: ChainState) -> None:
        """Of what is committed the height alone is known: one more age goes by, which is more than long enough."""
        for offence in [key for key, evidence in self._pending.items() if self._expired(evidence, chain)]:
            del self._pending[offence]
            self.changed = True
        oldest = chain.last_height - 2 * self._params.max_age_blocks
        for offence in [key for key in self._committed if key[0] < oldest]:
            past = self._history(offence[0])
            if past is None or chain.last_time_ns - past.time_ns > self._params.max_age_ns:
                self._committed.discard(offence)
                self.changed = True


def _offence(evidence: DuplicateVoteEvidence) -> Offence:
    return evidence.height, evidence.validator_address


def _place(vote: Vote) -> tuple[int, int, int, bytes, int]:
    return vote.height, vote.round, vote.type, vote.validator_address, vote.validator_index


def _bad(why: str) -> InvalidInput:
    return InvalidInput(f"this evidence proves nothing here: {why}", code="bad_evidence")
