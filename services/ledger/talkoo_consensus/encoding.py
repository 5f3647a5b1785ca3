"""CometBFT 1.0's canonical bytes: what is signed, what is hashed, and blocks, votes and proposals on the wire.

Field numbers are those of cometbft.types.v1. Sign-bytes are length-delimited; `decode_*` raise Corrupt (`malformed`)
and accept only the bytes that `encode_*` would write. tests/consensus/vectors holds what CometBFT itself produces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, TypeVar

from talkoo_consensus.types import (
    GO_ZERO_TIME_NS,
    MAX_BLOCK_BYTES,
    MAX_CHAIN_ID_LENGTH,
    MAX_EVIDENCE_PER_BLOCK,
    MAX_EXTENSION_BYTES,
    Block,
    BlockId,
    BlockIdFlag,
    Commit,
    CommitSig,
    Data,
    DuplicateVoteEvidence,
    Header,
    Proposal,
    SignedType,
    TxResult,
    Vote,
)
from talkoo_consensus.validators import MAX_VALIDATORS, ValidatorSet
from talkoo_core import merkle
from talkoo_core.errors import Corrupt
from talkoo_core.protowire import (
    BYTES,
    VARINT,
    Fields,
    bytes_field,
    delimited,
    fixed_field,
    int_field,
    message_field,
)
from talkoo_core.signing import ADDRESS_BYTES, SIGNATURE_BYTES

PART_BYTES: Final = 65_536
BLOCKS_REMEMBERED: Final = 4
"""A block is encoded for its id, its proposal, the log and the store, all within a moment."""
BLOCK_IDS_REMEMBERED: Final = 64
"""All votes of a round name the same one or two."""
EMPTY_EVIDENCE_HASH: Final = merkle.EMPTY_ROOT
_INT32_MAX: Final = 2**31 - 1
_INT64_MAX: Final = 2**63 - 1
_FIRST_SECOND: Final = GO_ZERO_TIME_NS // 10**9
_LAST_SECOND: Final = 253_402_300_799
"""The last second of year 9999, where protobuf's Timestamp ends."""

_T = TypeVar("_T")


# Parts of messages


def encode_time(time_ns: int) -> bytes:
    """google.protobuf.Timestamp; nanoseconds count forward from the second, also before 1970."""
    seconds, nanos = divmod(time_ns, 10**9)
    return int_field(1, seconds) + int_field(2, nanos)


def _decode_time(data: bytes) -> int:
    fields = Fields(data, "timestamp", {1: VARINT, 2: VARINT})
    seconds = fields.integer(1, lowest=_FIRST_SECOND, highest=_LAST_SECOND)
    return seconds * 10**9 + fields.integer(2, lowest=0, highest=10**9 - 1)


@lru_cache(maxsize=BLOCK_IDS_REMEMBERED)
def encode_block_id(block_id: BlockId) -> bytes:
    parts = int_field(1, block_id.part_set_total) + bytes_field(2, block_id.part_set_hash)
    return bytes_field(1, block_id.hash) + message_field(2, parts)


@lru_cache(maxsize=BLOCK_IDS_REMEMBERED)
def _decode_block_id(data: bytes) -> BlockId:
    fields = Fields(data, "block id", {1: BYTES, 2: BYTES})
    parts = Fields(fields.message(2), "part set header", {1: VARINT, 2: BYTES})
    block_id = BlockId(
        fields.blob(1, longest=merkle.HASH_BYTES),
        parts.integer(1, lowest=0, highest=MAX_BLOCK_BYTES // PART_BYTES + 1),
        parts.blob(2, longest=merkle.HASH_BYTES),
    )
    complete = len(block_id.hash) == len(block_id.part_set_hash) == merkle.HASH_BYTES and block_id.part_set_total > 0
    if not (complete or block_id.is_nil):
        raise fields.fail("it names neither a block nor nil")
    return block_id


def _canonical_block_id(number: int, block_id: BlockId) -> bytes:
    """Nil is left out of what is signed."""
    return b"" if block_id.is_nil else message_field(number, encode_block_id(block_id))


# What is signed


def vote_sign_bytes(chain_id: str, vote: Vote) -> bytes:
    """CanonicalVote, length-delimited: neither the validator nor its extension is in it."""
    return delimited(
        int_field(1, vote.type)
        + fixed_field(2, vote.height)
        + fixed_field(3, vote.round)
        + _canonical_block_id(4, vote.block_id)
        + message_field(5, encode_time(vote.timestamp_ns))
        + bytes_field(6, chain_id.encode())
    )


def proposal_sign_bytes(chain_id: str, proposal: Proposal) -> bytes:
    """CanonicalProposal, length-delimited."""
    return delimited(
        int_field(1, SignedType.PROPOSAL)
        + fixed_field(2, proposal.height)
        + fixed_field(3, proposal.round)
        + int_field(4, proposal.pol_round)
        + _canonical_block_id(5, proposal.block_id)
        + message_field(6, encode_time(proposal.timestamp_ns))
        + bytes_field(7, chain_id.encode())
    )


def extension_sign_bytes(chain_id: str, vote: Vote) -> bytes:
    """CanonicalVoteExtension, length-delimited."""
    return delimited(
        bytes_field(1, vote.extension)
        + fixed_field(2, vote.height)
        + fixed_field(3, vote.round)
        + bytes_field(4, chain_id.encode())
    )


# What is hashed


def header_hash(header: Header) -> bytes:
    """The block's hash: the root over its fourteen fields, each encoded by itself. Needs a validators hash."""
    assert header.validators_hash

    def wrapped(value: bytes) -> bytes:
        return bytes_field(1, value)

    return merkle.hash_from_byte_slices(
        [
            int_field(1, header.version_block) + int_field(2, header.version_app),
            wrapped(header.chain_id.encode()),
            int_field(1, header.height),
            encode_time(header.time_ns),
            encode_block_id(header.last_block_id),
            wrapped(header.last_commit_hash),
            wrapped(header.data_hash),
            wrapped(header.validators_hash),
            wrapped(header.next_validators_hash),
            wrapped(header.consensus_hash),
            wrapped(header.app_hash),
            wrapped(header.last_results_hash),
            wrapped(header.evidence_hash),
            wrapped(header.proposer_address),
        ]
    )


def commit_hash(commit: Commit) -> bytes:
    return merkle.hash_from_byte_slices([_encode_commit_sig(sig) for sig in commit.signatures])


def validators_hash(validators: ValidatorSet) -> bytes:
    """Root over SimpleValidator{PublicKey{ed25519}, power}; priorities are not part of it."""
    return merkle.hash_from_byte_slices(
        [
            message_field(1, bytes_field(1, validator.public_key)) + int_field(2, validator.power)
            for validator in validators.validators
        ]
    )


def data_hash(txs: Sequence[bytes]) -> bytes:
    """Root over the SHA-256 of each transaction."""
    return merkle.hash_from_byte_slices([hashlib.sha256(tx).digest() for tx in txs])


def evidence_hash(evidence: Sequence[DuplicateVoteEvidence]) -> bytes:
    """CometBFT's EvidenceList.Hash: the root over each piece's bytes, EMPTY_EVIDENCE_HASH for none."""
    return merkle.hash_from_byte_slices([encode_evidence(piece) for piece in evidence])


def consensus_params_hash(max_bytes: int, max_gas: int) -> bytes:
    """SHA-256 of HashedParams; `max_gas` -1 is no limit."""
    return hashlib.sha256(int_field(1, max_bytes) + int_field(2, max_gas)).digest()


def results_hash(results: Sequence[TxResult]) -> bytes:
    """Root over the deterministic part of each ExecTxResult: `Header.last_results_hash` of the next block."""
    return merkle.hash_from_byte_slices(
        [
            int_field(1, result.code)
            + bytes_field(2, result.data)
            + int_field(5, result.gas_wanted)
            + int_field(6, result.gas_used)
            for result in results
        ]
    )


def split_parts(block_bytes: bytes) -> list[bytes]:
    return [block_bytes[start : start + PART_BYTES] for start in range(0, len(block_bytes), PART_BYTES)]


@lru_cache(maxsize=BLOCKS_REMEMBERED)
def block_id_of(block: Block) -> BlockId:
    """Header hash and the root over the parts of the encoded block."""
    parts = split_parts(encode_block(block))
    return BlockId(header_hash(block.header), len(parts), merkle.hash_from_byte_slices(parts))


# On the wire


def _canonical(data: bytes, what: str, decode: Callable[[bytes], _T], encode: Callable[[_T], bytes]) -> _T:
    value = decode(data)
    if encode(value) != data:
        raise Corrupt(f"the bytes are not a canonical {what}; encode it as CometBFT does", code="malformed")
    return value


def encode_vote(vote: Vote) -> bytes:
    return (
        int_field(1, vote.type)
        + int_field(2, vote.height)
        + int_field(3, vote.round)
        + message_field(4, encode_block_id(vote.block_id))
        + message_field(5, encode_time(vote.timestamp_ns))
        + bytes_field(6, vote.validator_address)
        + int_field(7, vote.validator_index)
        + bytes_field(8, vote.signature)
        + bytes_field(9, vote.extension)
        + bytes_field(10, vote.extension_signature)
    )


def _read_vote(data: bytes) -> Vote:
    kinds = {1: VARINT, 2: VARINT, 3: VARINT, 4: BYTES, 5: BYTES, 6: BYTES, 7: VARINT, 8: BYTES, 9: BYTES, 10: BYTES}
    fields = Fields(data, "vote", kinds)
    return Vote(
        type=SignedType(fields.integer(1, lowest=SignedType.PREVOTE, highest=SignedType.PRECOMMIT)),
        height=fields.integer(2, lowest=1, highest=_INT64_MAX),
        round=fields.integer(3, lowest=0, highest=_INT32_MAX),
        block_id=_decode_block_id(fields.message(4)),
        timestamp_ns=_decode_time(fields.message(5)),
        validator_address=_address(fields, 6),
        validator_index=fields.integer(7, lowest=0, highest=MAX_VALIDATORS - 1),
        signature=fields.blob(8, longest=SIGNATURE_BYTES),
        extension=fields.blob(9, longest=MAX_EXTENSION_BYTES),
        extension_signature=fields.blob(10, longest=SIGNATURE_BYTES),
    )


def decode_vote(data: bytes) -> Vote:
    return _canonical(data, "vote", _read_vote, encode_vote)


def _address(fields: Fields, number: int) -> bytes:
    address = fields.blob(number, longest=ADDRESS_BYTES)
    if len(address) != ADDRESS_BYTES:
        raise fields.fail(f"an address has {ADDRESS_BYTES} bytes, this one {len(address)}")
    return address


def encode_proposal(proposal: Proposal) -> bytes:
    return (
        int_field(1, SignedType.PROPOSAL)
        + int_field(2, proposal.height)
        + int_field(3, proposal.round)
        + int_field(4, proposal.pol_round)
        + message_field(5, encode_block_id(proposal.block_id))
        + message_field(6, encode_time(proposal.timestamp_ns))
        + bytes_field(7, proposal.signature)
    )


def _read_proposal(data: bytes) -> Proposal:
    fields = Fields(data, "proposal", {1: VARINT, 2: VARINT, 3: VARINT, 4: VARINT, 5: BYTES, 6: BYTES, 7: BYTES})
    fields.integer(1, lowest=SignedType.PROPOSAL, highest=SignedType.PROPOSAL)
    round_ = fields.integer(3, lowest=0, highest=_INT32_MAX)
    block_id = _decode_block_id(fields.message(5))
    if block_id.is_nil:
        raise fields.fail("it proposes no block")
    return Proposal(
        height=fields.integer(2, lowest=1, highest=_INT64_MAX),
        round=round_,
        pol_round=fields.integer(4, lowest=-1, highest=round_ - 1),
        block_id=block_id,
        timestamp_ns=_decode_time(fields.message(6)),
        signature=fields.blob(7, longest=SIGNATURE_BYTES),
    )


def decode_proposal(data: bytes) -> Proposal:
    return _canonical(data, "proposal", _read_proposal, encode_proposal)


def _encode_commit_sig(sig: CommitSig) -> bytes:
    return (
        int_field(1, sig.flag)
        + bytes_field(2, sig.validator_address)
        + message_field(3, encode_time(sig.timestamp_ns))
        + bytes_field(4, sig.signature)
    )


def _read_commit_sig(data: bytes) -> CommitSig:
    fields = Fields(data, "commit signature", {1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES})
    return CommitSig(
        BlockIdFlag(fields.integer(1, lowest=BlockIdFlag.ABSENT, highest=BlockIdFlag.NIL)),
        fields.blob(2, longest=ADDRESS_BYTES),
        _decode_time(fields.message(3)),
        fields.blob(4, longest=SIGNATURE_BYTES),
    )


def encode_commit(commit: Commit) -> bytes:
    return (
        int_field(1, commit.height)
        + int_field(2, commit.round)
        + message_field(3, encode_block_id(commit.block_id))
        + b"".join(message_field(4, _encode_commit_sig(sig)) for sig in commit.signatures)
    )


def _read_commit(data: bytes) -> Commit:
    fields = Fields(data, "commit", {1: VARINT, 2: VARINT, 3: BYTES, 4: BYTES})
    return Commit(
        fields.integer(1, lowest=0, highest=_INT64_MAX),
        fields.integer(2, lowest=0, highest=_INT32_MAX),
        _decode_block_id(fields.message(3)),
        tuple(_read_commit_sig(sig) for sig in fields.repeated(4, most=MAX_VALIDATORS)),
    )


def decode_commit(data: bytes) -> Commit:
    return _canonical(data, "commit", _read_commit, encode_commit)


def block_id_key(block_id: BlockId) -> bytes:
    """What orders the two votes of a piece of evidence; that of nil is empty."""
    parts = int_field(1, block_id.part_set_total) + bytes_field(2, block_id.part_set_hash)
    return block_id.hash + parts


def encode_evidence(evidence: DuplicateVoteEvidence) -> bytes:
    return (
        message_field(1, encode_vote(evidence.vote_a))
        + message_field(2, encode_vote(evidence.vote_b))
        + int_field(3, evidence.total_voting_power)
        + int_field(4, evidence.validator_power)
        + message_field(5, encode_time(evidence.timestamp_ns))
    )


def _read_evidence(data: bytes) -> DuplicateVoteEvidence:
    fields = Fields(data, "piece of evidence", {1: BYTES, 2: BYTES, 3: VARINT, 4: VARINT, 5: BYTES})
    evidence = DuplicateVoteEvidence(
        _read_vote(fields.message(1)),
        _read_vote(fields.message(2)),
        fields.integer(3, lowest=1, highest=_INT64_MAX),
        fields.integer(4, lowest=1, highest=_INT64_MAX),
        _decode_time(fields.message(5)),
    )
    if block_id_key(evidence.vote_a.block_id) >= block_id_key(evidence.vote_b.block_id):
        raise fields.fail("its votes are not in the order of their block ids")
    return evidence


def decode_evidence(data: bytes) -> DuplicateVoteEvidence:
    return _canonical(data, "piece of evidence", _read_evidence, encode_evidence)


def encode_evidence_list(evidence: Sequence[DuplicateVoteEvidence]) -> bytes:
    """EvidenceList, as it stands in a block; its length is what MAX_EVIDENCE_BYTES bounds."""
    return b"".join(message_field(1, message_field(1, encode_evidence(piece))) for piece in evidence)


def _read_evidence_list(data: bytes) -> tuple[DuplicateVoteEvidence, ...]:
    """Evidence of attacks on light clients, which this chain does not put into blocks, is refused."""
    pieces = Fields(data, "list of evidence", {1: BYTES}).repeated(1, most=MAX_EVIDENCE_PER_BLOCK)
    return tuple(_read_evidence(Fields(piece, "piece of evidence", {1: BYTES}).message(1)) for piece in pieces)


def encode_header(header: Header) -> bytes:
    return (
        message_field(1, int_field(1, header.version_block) + int_field(2, header.version_app))
        + bytes_field(2, header.chain_id.encode())
        + int_field(3, header.height)
        + message_field(4, encode_time(header.time_ns))
        + message_field(5, encode_block_id(header.last_block_id))
        + bytes_field(6, header.last_commit_hash)
        + bytes_field(7, header.data_hash)
        + bytes_field(8, header.validators_hash)
        + bytes_field(9, header.next_validators_hash)
        + bytes_field(10, header.consensus_hash)
        + bytes_field(11, header.app_hash)
        + bytes_field(12, header.last_results_hash)
        + bytes_field(13, header.evidence_hash)
        + bytes_field(14, header.proposer_address)
    )


def _read_header(data: bytes) -> Header:
    kinds = dict.fromkeys(range(1, 15), BYTES) | {3: VARINT}
    fields = Fields(data, "header", kinds)
    version = Fields(fields.message(1), "version", {1: VARINT, 2: VARINT})
    try:
        chain_id = fields.blob(2, longest=MAX_CHAIN_ID_LENGTH).decode()
    except UnicodeDecodeError as error:
        raise fields.fail("its chain id is not text") from error

    def hash_of(number: int) -> bytes:
        return fields.blob(number, longest=merkle.HASH_BYTES)

    if len(hash_of(8)) != merkle.HASH_BYTES:
        raise fields.fail("it has no validators hash")
    return Header(
        version_block=version.integer(1, lowest=0, highest=_INT64_MAX),
        version_app=version.integer(2, lowest=0, highest=_INT64_MAX),
        chain_id=chain_id,
        height=fields.integer(3, lowest=1, highest=_INT64_MAX),
        time_ns=_decode_time(fields.message(4)),
        last_block_id=_decode_block_id(fields.message(5)),
        last_commit_hash=hash_of(6),
        data_hash=hash_of(7),
        validators_hash=hash_of(8),
        next_validators_hash=hash_of(9),
        consensus_hash=hash_of(10),
        app_hash=hash_of(11),
        last_results_hash=hash_of(12),
        evidence_hash=hash_of(13),
        proposer_address=_address(fields, 14),
    )


def decode_header(data: bytes) -> Header:
    return _canonical(data, "header", _read_header, encode_header)


@lru_cache(maxsize=BLOCKS_REMEMBERED)
def encode_block(block: Block) -> bytes:
    data = b"".join(message_field(1, tx) for tx in block.data.txs)
    return (
        message_field(1, encode_header(block.header))
        + message_field(2, data)
        + message_field(3, encode_evidence_list(block.evidence))
        + message_field(4, encode_commit(block.last_commit))
    )


def _read_block(data: bytes) -> Block:
    fields = Fields(data, "block", {1: BYTES, 2: BYTES, 3: BYTES, 4: BYTES})
    txs = Fields(fields.message(2), "list of transactions", {1: BYTES})
    return Block(
        _read_header(fields.message(1)),
        Data(tuple(txs.repeated(1, most=MAX_BLOCK_BYTES))),
        _read_commit(fields.message(4)),
        _read_evidence_list(fields.message(3)),
    )


def decode_block(data: bytes) -> Block:
    """Raises Corrupt: `malformed`, or `block_too_large` beyond MAX_BLOCK_BYTES."""
    if len(data) > MAX_BLOCK_BYTES:
        raise Corrupt(
            f"a block of {len(data)} bytes is refused; at most {MAX_BLOCK_BYTES} are read", code="block_too_large"
        )
    return _canonical(data, "block", _read_block, encode_block)
