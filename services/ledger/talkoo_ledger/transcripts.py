"""What a node saw of a height, for forensics: the votes it keeps, and a file that says it to others.

A transcript file is one JSON object: chain id, height, the validators with their powers, and votes in CometBFT's
encoding. Files of several nodes are judged together; a signature that does not hold is passed over and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from talkoo_consensus.accountability import Accusation, accuse, accused_power
from talkoo_consensus.encoding import decode_commit, decode_vote, encode_vote
from talkoo_consensus.types import BlockIdFlag, SignedType, Vote
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_consensus.verify import verify_vote, vote_of_commit
from talkoo_consensus.votes import is_quorum

from talkoo_core.errors import Conflict, Corrupt, InvalidInput, NotFound, TalkooError
from talkoo_core.protowire import BYTES, Fields, message_field
from talkoo_ledger.store import BlockStore

MAX_VOTES = 4_096
"""Of one height, the newest rounds: a hundred validators for twenty."""


def encode_transcript(votes: Sequence[Vote]) -> bytes:
    return b"".join(message_field(1, encode_vote(vote)) for vote in votes[-MAX_VOTES:])


def decode_transcript(data: bytes) -> tuple[Vote, ...]:
    """Raises Corrupt (code `malformed`)."""
    return tuple(map(decode_vote, Fields(data, "transcript", {1: BYTES}).repeated(1, most=MAX_VOTES)))


@dataclass(frozen=True, slots=True)
class Transcript:
    """One node's view of a decided height."""

    chain_id: str
    height: int
    validators: ValidatorSet
    votes: tuple[Vote, ...]

    def to_json(self) -> str:
        return json.dumps(
            {
                "chain_id": self.chain_id,
                "height": self.height,
                "validators": [{"key": v.public_key.hex(), "power": v.power} for v in self.validators.validators],
                "votes": [encode_vote(vote).hex() for vote in self.votes],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Transcript:
        """Raises Corrupt (code `bad_transcript`)."""
        try:
            document = json.loads(text)
            members = [Validator.of(bytes.fromhex(each["key"]), int(each["power"])) for each in document["validators"]]
            votes = tuple(decode_vote(bytes.fromhex(vote)) for vote in document["votes"])
            return cls(str(document["chain_id"]), int(document["height"]), ValidatorSet.create(members), votes)
        except (ValueError, KeyError, TypeError, TalkooError) as error:
            raise Corrupt(f"this is no transcript of a height: {error!r}", code="bad_transcript") from None


def read_transcript(store: BlockStore, height: int) -> Transcript:
    """What a node's store says of a height: its commit, and every vote where it took several rounds.

    Raises NotFound (code `no_block`) for a height that is not there.
    """
    chain, validators, commit = store.chain(), store.validators(height), store.commit(height)
    if chain is None or validators is None or commit is None:
        raise NotFound(f"height {height} is not on this node (any more)", code="no_block")
    votes = list(decode_transcript(store.transcript(height) or b""))
    decided = decode_commit(commit)
    votes += [
        vote_of_commit(decided, index, sig)
        for index, sig in enumerate(decided.signatures)
        if sig.flag is not BlockIdFlag.ABSENT
    ]
    return Transcript(chain.chain_id, height, validators, tuple(dict.fromkeys(votes)))


@dataclass(frozen=True, slots=True)
class Finding:
    """`decided`: hashes of blocks that > 2/3 precommitted in one round; two of them are a fork."""

    accusations: tuple[Accusation, ...]
    accused_power: int
    total_power: int
    decided: tuple[bytes, ...]
    unsigned_votes: int
    """Votes whose signature does not hold."""


def judge(transcripts: Sequence[Transcript]) -> Finding:
    """Who broke the rules of the height that all transcripts are of.

    Raises InvalidInput (`no_transcript`), Conflict (`other_height`) where they are of different heights or validators.
    """
    if not transcripts:
        raise InvalidInput("give at least one transcript", code="no_transcript")
    first = transcripts[0]
    for other in transcripts[1:]:
        same = (other.chain_id, other.height) == (first.chain_id, first.height)
        if not same or _powers(other.validators) != _powers(first.validators):
            raise Conflict("these transcripts are of different chains, heights or validators", code="other_height")
    votes, unsigned = _verified(first, (vote for each in transcripts for vote in each.votes))
    accusations = accuse(first.validators, votes)
    power = accused_power(first.validators, accusations)
    return Finding(accusations, power, first.validators.total_power, _decided(first.validators, votes), unsigned)


def _powers(validators: ValidatorSet) -> list[tuple[bytes, int]]:
    return [(validator.public_key, validator.power) for validator in validators.validators]


def _verified(of: Transcript, votes: Iterable[Vote]) -> tuple[list[Vote], int]:
    right, wrong = [], 0
    for vote in dict.fromkeys(votes):
        found = of.validators.find(vote.validator_address)
        if vote.height == of.height and found is not None and verify_vote(vote, of.chain_id, found[1]):
            right.append(vote)
        else:
            wrong += 1
    return right, wrong


def _decided(validators: ValidatorSet, votes: Iterable[Vote]) -> tuple[bytes, ...]:
    voters: dict[tuple[int, bytes], set[bytes]] = {}
    for vote in votes:
        if vote.type is SignedType.PRECOMMIT and not vote.block_id.is_nil:
            voters.setdefault((vote.round, vote.block_id.hash), set()).add(vote.validator_address)
    decided = {
        value
        for (_, value), addresses in voters.items()
        if is_quorum(
            sum(each.power for each in validators.validators if each.address in addresses), validators.total_power
        )
    }
    return tuple(sorted(decided))
