"""What consensus speaks of: votes, proposals, headers, commits, blocks. Frozen; names and meanings as CometBFT 1.0.

Times are integers, nanoseconds since the Unix epoch. `GO_ZERO_TIME_NS` is the year 1, Go's "no time", which CometBFT
encodes in places that have none (an absent signature of a commit). Hashes are 32 raw bytes, or empty where CometBFT
leaves them empty; addresses are 20 raw bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

GO_ZERO_TIME_NS = -62_135_596_800 * 10**9
BLOCK_PROTOCOL = 11
"""`Header.version_block` of CometBFT 1.0."""
MAX_BLOCK_BYTES = 4 * 1024 * 1024
"""The largest encoded block that is made or read."""
MAX_CHAIN_ID_LENGTH = 50
MAX_EXTENSION_BYTES = 64 * 1024
MAX_EVIDENCE_BYTES = 64 * 1024
"""Of the evidence list in a block, some hundred and fifty double votes; what does not fit goes into the next."""
MAX_EVIDENCE_PER_BLOCK = 256


class SignedType(IntEnum):
    PREVOTE = 1
    PRECOMMIT = 2
    PROPOSAL = 32


class BlockIdFlag(IntEnum):
    ABSENT = 1
    COMMIT = 2
    NIL = 3


@dataclass(frozen=True, slots=True)
class BlockId:
    """A block's header hash and the root of its 64 KiB parts. All empty: nil, a vote for no block."""

    hash: bytes = b""
    part_set_total: int = 0
    part_set_hash: bytes = b""

    @property
    def is_nil(self) -> bool:
        return not self.hash and self.part_set_total == 0 and not self.part_set_hash

    def __str__(self) -> str:
        return self.hash.hex()[:12] if self.hash else "nil"


NIL_BLOCK_ID = BlockId()


@dataclass(frozen=True, slots=True)
class Vote:
    """A prevote or precommit. Unsigned votes have no signature and time 0: whoever signs fills both."""

    type: SignedType
    height: int
    round: int
    block_id: BlockId
    timestamp_ns: int
    validator_address: bytes
    validator_index: int
    signature: bytes = b""
    extension: bytes = b""
    extension_signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Proposal:
    """`pol_round`: the round whose prevotes made the value valid (validRound of the paper), -1 for a fresh value.

    `timestamp_ns` equals the block's header time (proposer-based timestamps).
    """

    height: int
    round: int
    pol_round: int
    block_id: BlockId
    timestamp_ns: int
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Header:
    """CometBFT's fourteen fields, in its order; the first two are one field (version) on the wire."""

    version_block: int
    version_app: int
    chain_id: str
    height: int
    time_ns: int
    last_block_id: BlockId
    last_commit_hash: bytes
    data_hash: bytes
    validators_hash: bytes
    next_validators_hash: bytes
    consensus_hash: bytes
    app_hash: bytes
    last_results_hash: bytes
    evidence_hash: bytes
    proposer_address: bytes


@dataclass(frozen=True, slots=True)
class CommitSig:
    """One validator's place in a commit; an absent one has no address, no signature and Go's zero time."""

    flag: BlockIdFlag
    validator_address: bytes = b""
    timestamp_ns: int = GO_ZERO_TIME_NS
    signature: bytes = b""


ABSENT_SIG = CommitSig(BlockIdFlag.ABSENT)


@dataclass(frozen=True, slots=True)
class Commit:
    """The precommits that decided a block, in the order of the validator set. `EMPTY_COMMIT` precedes block one."""

    height: int
    round: int
    block_id: BlockId
    signatures: tuple[CommitSig, ...]


EMPTY_COMMIT = Commit(0, 0, NIL_BLOCK_ID, ())


@dataclass(frozen=True, slots=True)
class Data:
    txs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class ConflictingVotes:
    """Two votes of one validator for the same height, round and type, and different blocks, in order of arrival."""

    first: Vote
    second: Vote


@dataclass(frozen=True, slots=True)
class DuplicateVoteEvidence:
    """Conflicting votes as a block holds them; `vote_a` is for the block id that sorts first (`evidence.form`).

    The powers are those of the votes' height, `timestamp_ns` is the time of the block decided there.
    """

    vote_a: Vote
    vote_b: Vote
    total_voting_power: int
    validator_power: int
    timestamp_ns: int

    @property
    def height(self) -> int:
        return self.vote_a.height

    @property
    def validator_address(self) -> bytes:
        return self.vote_a.validator_address


@dataclass(frozen=True, slots=True)
class Block:
    header: Header
    data: Data
    last_commit: Commit
    evidence: tuple[DuplicateVoteEvidence, ...] = ()


@dataclass(frozen=True, slots=True)
class TxResult:
    """The deterministic fields of CometBFT's ExecTxResult, which `last_results_hash` covers."""

    code: int = 0
    data: bytes = b""
    gas_wanted: int = 0
    gas_used: int = 0
