"""What CometBFT's RPC writes in JSON, made from our own types: the counterpart of `comet.documents`.

As CometBFT's: 64-bit integers are strings, hashes and addresses are upper-case hex, other bytes are base64 (null where
there are none), times are RFC 3339 without trailing zeros, keys carry the name of their type.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.types import Block, BlockId, Commit, CommitSig, DuplicateVoteEvidence, Header, Vote
from talkoo_consensus.validators import Validator

from talkoo_core.merkle import Proof
from talkoo_ledger.event_index import event_pairs

Document = dict[str, Any]

PUBLIC_KEY_TYPE = "tendermint/PubKeyEd25519"
DUPLICATE_VOTE_TYPE = "tendermint/DuplicateVoteEvidence"
GO_ZERO_TIME = "0001-01-01T00:00:00Z"
_FIRST_TIME_NS = -62_135_596_800 * 10**9


def hex_of(raw: bytes) -> str:
    return raw.hex().upper()


def base64_of(raw: bytes) -> str | None:
    """Go writes no bytes as null."""
    return base64.b64encode(raw).decode() if raw else None


def time_text(time_ns: int) -> str:
    if time_ns == _FIRST_TIME_NS:
        return GO_ZERO_TIME
    seconds, nanos = divmod(time_ns, 10**9)
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"


def block_id_document(block_id: BlockId) -> Document:
    parts = {"total": block_id.part_set_total, "hash": hex_of(block_id.part_set_hash)}
    return {"hash": hex_of(block_id.hash), "parts": parts}


def header_document(header: Header) -> Document:
    version: Document = {"block": str(header.version_block)}
    if header.version_app:
        version["app"] = str(header.version_app)
    return {
        "version": version,
        "chain_id": header.chain_id,
        "height": str(header.height),
        "time": time_text(header.time_ns),
        "last_block_id": block_id_document(header.last_block_id),
        "last_commit_hash": hex_of(header.last_commit_hash),
        "data_hash": hex_of(header.data_hash),
        "validators_hash": hex_of(header.validators_hash),
        "next_validators_hash": hex_of(header.next_validators_hash),
        "consensus_hash": hex_of(header.consensus_hash),
        "app_hash": hex_of(header.app_hash),
        "last_results_hash": hex_of(header.last_results_hash),
        "evidence_hash": hex_of(header.evidence_hash),
        "proposer_address": hex_of(header.proposer_address),
    }


def commit_document(commit: Commit) -> Document:
    return {
        "height": str(commit.height),
        "round": commit.round,
        "block_id": block_id_document(commit.block_id),
        "signatures": [_signature_document(each) for each in commit.signatures],
    }


def _signature_document(signature: CommitSig) -> Document:
    return {
        "block_id_flag": int(signature.flag),
        "validator_address": hex_of(signature.validator_address),
        "timestamp": time_text(signature.timestamp_ns),
        "signature": base64_of(signature.signature),
    }


def block_document(block: Block) -> Document:
    return {
        "header": header_document(block.header),
        "data": {"txs": [base64.b64encode(tx).decode() for tx in block.data.txs]},
        "evidence": {"evidence": [evidence_document(each) for each in block.evidence]},
        "last_commit": commit_document(block.last_commit),
    }


def evidence_document(evidence: DuplicateVoteEvidence) -> Document:
    return {
        "type": DUPLICATE_VOTE_TYPE,
        "value": {
            "vote_a": vote_document(evidence.vote_a),
            "vote_b": vote_document(evidence.vote_b),
            "total_voting_power": str(evidence.total_voting_power),
            "validator_power": str(evidence.validator_power),
            "timestamp": time_text(evidence.timestamp_ns),
        },
    }


def vote_document(vote: Vote) -> Document:
    return {
        "type": int(vote.type),
        "height": str(vote.height),
        "round": vote.round,
        "block_id": block_id_document(vote.block_id),
        "timestamp": time_text(vote.timestamp_ns),
        "validator_address": hex_of(vote.validator_address),
        "validator_index": vote.validator_index,
        "signature": base64_of(vote.signature),
        "extension": base64_of(vote.extension),
        "extension_signature": base64_of(vote.extension_signature),
    }


def key_document(public_key: bytes) -> Document:
    return {"type": PUBLIC_KEY_TYPE, "value": base64.b64encode(public_key).decode()}


def validator_document(validator: Validator) -> Document:
    return {
        "address": hex_of(validator.address),
        "pub_key": key_document(validator.public_key),
        "voting_power": str(validator.power),
        "proposer_priority": str(validator.proposer_priority),
    }


def update_document(update: Validator) -> Document:
    """An ABCI ValidatorUpdate; a removal has no power, as Go leaves zeros out of it."""
    power = {"power": str(update.power)} if update.power else {}
    return power | {"pub_key_bytes": base64.b64encode(update.public_key).decode(), "pub_key_type": "ed25519"}


# Results and events


def events_document(events: Iterable[service_pb2.Event]) -> list[Document]:
    return [
        {
            "type": event.type,
            "attributes": [{"key": key, "value": value, "index": True} for key, value in event_pairs(event)],
        }
        for event in events
    ]


def result_document(result: service_pb2.TxResult) -> Document:
    """ExecTxResult: family and code of the error as codespace and info."""
    return {
        "code": result.code,
        "data": None,
        "log": result.message,
        "info": result.error_code,
        "gas_wanted": "0",
        "gas_used": "0",
        "events": events_document(result.events),
        "codespace": result.family,
    }


def without_zeros(document: Document) -> Document:
    """As Go writes an ExecTxResult inside an event: what is zero is left out."""
    return {key: value for key, value in document.items() if value not in (0, None, "", "0", [])}


def proof_document(root: bytes, tx: bytes, proof: Proof) -> Document:
    """That a transaction stands in a block: against the header's data_hash."""
    return {
        "root_hash": hex_of(root),
        "data": base64.b64encode(tx).decode(),
        "proof": {
            "total": str(proof.total),
            "index": str(proof.index),
            "leaf_hash": base64.b64encode(proof.leaf_hash).decode(),
            "aunts": [base64.b64encode(aunt).decode() for aunt in proof.aunts],
        },
    }
