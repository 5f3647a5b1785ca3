"""Blocks and commits as CometBFT's RPC writes them in JSON, read into our own types.

Whoever reads them holds them against a hash; here only their form is checked. Raises Corrupt (`malformed`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from talkoo_consensus.types import (
    GO_ZERO_TIME_NS,
    Block,
    BlockId,
    BlockIdFlag,
    Commit,
    CommitSig,
    Data,
    DuplicateVoteEvidence,
    Header,
    SignedType,
    Vote,
)
from talkoo_consensus.validators import Validator

from talkoo_core.errors import Corrupt

ED25519 = "tendermint/PubKeyEd25519"
DOUBLE_VOTE = "tendermint/DuplicateVoteEvidence"

T = TypeVar("T")
Document = Mapping[str, Any]


def block_of(document: Document) -> Block:
    return _read("block", lambda: _block(document))


def commit_of(document: Document) -> Commit:
    return _read("commit", lambda: _commit(document))


def header_of(document: Document) -> Header:
    return _read("header", lambda: _header(document))


def validator_of(document: Document) -> Validator:
    return _read("validator", lambda: _validator(document))


def evidence_of(document: Document) -> DuplicateVoteEvidence:
    return _read("piece of evidence", lambda: _evidence(document))


def time_of(text: str) -> int:
    """RFC 3339 with up to nine digits of a second, to nanoseconds since 1970."""
    moment, _, fraction = text.removesuffix("Z").partition(".")
    if not text.endswith("Z"):
        raise ValueError(f"{text!r} is no time in UTC")
    if moment.startswith("0001-01-01T00:00:00"):
        return GO_ZERO_TIME_NS
    seconds = int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp())
    return seconds * 10**9 + int(fraction.ljust(9, "0") or 0)


def _read(what: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"a {what} in CometBFT's JSON cannot be read: {error}", code="malformed") from None


def _block(document: Document) -> Block:
    txs = document["data"]["txs"] or ()
    return Block(
        header=_header(document["header"]),
        data=Data(tuple(base64.b64decode(tx, validate=True) for tx in txs)),
        last_commit=_commit(document["last_commit"]),
        evidence=tuple(_evidence(each) for each in document["evidence"]["evidence"] or ()),
    )


def _evidence(document: Document) -> DuplicateVoteEvidence:
    if document["type"] != DOUBLE_VOTE:
        raise ValueError(f"{document['type']} is no evidence that this chain's blocks hold")
    value = document["value"]
    return DuplicateVoteEvidence(
        vote_a=_vote(value["vote_a"]),
        vote_b=_vote(value["vote_b"]),
        total_voting_power=int(value["total_voting_power"]),
        validator_power=int(value["validator_power"]),
        timestamp_ns=time_of(value["timestamp"]),
    )


def _vote(document: Document) -> Vote:
    return Vote(
        type=SignedType(int(document["type"])),
        height=int(document["height"]),
        round=int(document["round"]),
        block_id=_block_id(document["block_id"]),
        timestamp_ns=time_of(document["timestamp"]),
        validator_address=bytes.fromhex(document["validator_address"]),
        validator_index=int(document["validator_index"]),
        signature=base64.b64decode(document["signature"] or "", validate=True),
    )


def _header(document: Document) -> Header:
    version = document["version"]
    return Header(
        version_block=int(version["block"]),
        version_app=int(version.get("app", 0)),
        chain_id=document["chain_id"],
        height=int(document["height"]),
        time_ns=time_of(document["time"]),
        last_block_id=_block_id(document["last_block_id"]),
        last_commit_hash=bytes.fromhex(document["last_commit_hash"]),
        data_hash=bytes.fromhex(document["data_hash"]),
        validators_hash=bytes.fromhex(document["validators_hash"]),
        next_validators_hash=bytes.fromhex(document["next_validators_hash"]),
        consensus_hash=bytes.fromhex(document["consensus_hash"]),
        app_hash=bytes.fromhex(document["app_hash"]),
        last_results_hash=bytes.fromhex(document["last_results_hash"]),
        evidence_hash=bytes.fromhex(document["evidence_hash"]),
        proposer_address=bytes.fromhex(document["proposer_address"]),
    )


def _validator(document: Document) -> Validator:
    key = document["pub_key"]
    if key["type"] != ED25519:
        raise ValueError(f"a key of the kind {key['type']}; this chain's are {ED25519}")
    public_key = base64.b64decode(key["value"], validate=True)
    validator = Validator.of(public_key, int(document["voting_power"]))
    if validator.address.hex().upper() != document["address"]:
        raise ValueError(f"{document['address']} is not the address of its key")
    return validator


def _block_id(document: Document) -> BlockId:
    parts = document["parts"]
    return BlockId(bytes.fromhex(document["hash"]), int(parts["total"]), bytes.fromhex(parts["hash"]))


def _commit(document: Document) -> Commit:
    return Commit(
        height=int(document["height"]),
        round=int(document["round"]),
        block_id=_block_id(document["block_id"]),
        signatures=tuple(
            CommitSig(
                flag=BlockIdFlag(int(each["block_id_flag"])),
                validator_address=bytes.fromhex(each["validator_address"]),
                timestamp_ns=time_of(each["timestamp"]),
                signature=base64.b64decode(each["signature"] or "", validate=True),
            )
            for each in document["signatures"] or ()
        ),
    )
