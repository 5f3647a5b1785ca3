"""Our bytes and hashes against those CometBFT v1.0.1 itself produced (vectors.json, printed by vectors/main.go)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talkoo_consensus import encoding
from talkoo_consensus.types import (
    MAX_BLOCK_BYTES,
    Block,
    BlockId,
    BlockIdFlag,
    Commit,
    CommitSig,
    Data,
    Header,
    Proposal,
    SignedType,
    TxResult,
    Vote,
)
from talkoo_consensus.validators import Validator, ValidatorSet

from talkoo_core import merkle
from talkoo_core.errors import Corrupt

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text())
raw = bytes.fromhex


def _time(entry: dict[str, int]) -> int:
    return entry["seconds"] * 10**9 + entry["nanos"]


def _id(entry: dict[str, Any]) -> BlockId:
    return BlockId(raw(entry["hash"]), entry["total"], raw(entry["parts"]))


def _vote(entry: dict[str, Any]) -> Vote:
    return Vote(
        SignedType(entry["type"]),
        entry["height"],
        entry["round"],
        _id(entry["block_id"]),
        _time(entry["time"]),
        raw(entry["address"]),
        entry["index"],
        raw(entry["signature"]),
        raw(entry["extension"]),
        raw(entry["extension_signature"]),
    )


def _proposal(entry: dict[str, Any]) -> Proposal:
    return Proposal(
        entry["height"],
        entry["round"],
        entry["pol_round"],
        _id(entry["block_id"]),
        _time(entry["time"]),
        raw(entry["signature"]),
    )


def _commit(entry: dict[str, Any]) -> Commit:
    signatures = tuple(
        CommitSig(BlockIdFlag(sig["flag"]), raw(sig["address"]), _time(sig["time"]), raw(sig["signature"]))
        for sig in entry["signatures"]
    )
    return Commit(entry["height"], entry["round"], _id(entry["block_id"]), signatures)


def _block(entry: dict[str, Any]) -> Block:
    header = Header(
        11,
        entry["version_app"],
        entry["chain_id"],
        entry["height"],
        _time(entry["time"]),
        _id(entry["last_block_id"]),
        *(
            raw(entry[name])
            for name in (
                "last_commit_hash",
                "data_hash",
                "validators_hash",
                "next_validators_hash",
                "consensus_hash",
                "app_hash",
                "last_results_hash",
                "evidence_hash",
                "proposer_address",
            )
        ),
    )
    txs = tuple(raw(tx) * entry["repeat"] for tx in entry["txs"])
    return Block(header, Data(txs), _commit(entry["commit"]))


def test_votes_sign_and_travel_as_cometbft_writes_them() -> None:
    for entry in VECTORS["votes"]:
        vote = _vote(entry)
        assert encoding.vote_sign_bytes(entry["chain_id"], vote).hex() == entry["sign_bytes"]
        assert encoding.extension_sign_bytes(entry["chain_id"], vote).hex() == entry["extension_sign_bytes"]
        assert encoding.encode_vote(vote).hex() == entry["wire"]
        assert encoding.decode_vote(raw(entry["wire"])) == vote


def test_proposals_sign_and_travel_as_cometbft_writes_them() -> None:
    for entry in VECTORS["proposals"]:
        proposal = _proposal(entry)
        assert encoding.proposal_sign_bytes(entry["chain_id"], proposal).hex() == entry["sign_bytes"]
        assert encoding.encode_proposal(proposal).hex() == entry["wire"]
        assert encoding.decode_proposal(raw(entry["wire"])) == proposal


def test_blocks_have_cometbfts_bytes_hashes_and_ids() -> None:
    for entry in VECTORS["blocks"]:
        block = _block(entry)
        encoded = encoding.encode_block(block)
        assert len(encoded) == entry["size"]
        if "wire" in entry:
            assert encoded.hex() == entry["wire"]
        assert encoding.decode_block(encoded) == block
        assert encoding.header_hash(block.header).hex() == entry["hash"]
        assert encoding.commit_hash(block.last_commit).hex() == entry["commit_hash"] == entry["last_commit_hash"]
        assert encoding.data_hash(block.data.txs).hex() == entry["data_hash"]
        assert encoding.evidence_hash(()).hex() == entry["evidence_hash"]
        assert encoding.block_id_of(block) == _id(entry["id"])


def test_some_block_of_the_vectors_has_several_parts() -> None:
    assert max(entry["id"]["total"] for entry in VECTORS["blocks"]) > 3


def test_results_and_parameters_hash_as_cometbft_does() -> None:
    for entry in VECTORS["results"]:
        results = [
            TxResult(one["code"], raw(one["data"]), one["gas_wanted"], one["gas_used"]) for one in entry["results"]
        ]
        assert encoding.results_hash(results).hex() == entry["hash"]
    for entry in VECTORS["consensus_params"]:
        assert encoding.consensus_params_hash(entry["max_bytes"], entry["max_gas"]).hex() == entry["hash"]


def test_merkle_trees_and_proofs_are_cometbfts() -> None:
    for entry in VECTORS["trees"]:
        leaves = [raw(leaf) for leaf in entry["leaves"]]
        root, proofs = merkle.proofs_from_byte_slices(leaves)
        assert root.hex() == entry["root"] == merkle.hash_from_byte_slices(leaves).hex()
        assert [[aunt.hex() for aunt in proof.aunts] for proof in proofs] == entry["aunts"]
        assert all(proof.verify(root, leaf) for proof, leaf in zip(proofs, leaves, strict=True))


def _members(validators: ValidatorSet) -> list[dict[str, Any]]:
    return [
        {"key": v.public_key.hex(), "address": v.address.hex(), "power": v.power, "priority": v.proposer_priority}
        for v in validators.validators
    ]


@pytest.mark.parametrize("chain", range(len(VECTORS["rotations"])))
def test_proposers_rotate_and_validators_join_and_leave_as_in_cometbft(chain: int) -> None:
    entry = VECTORS["rotations"][chain]
    validators = ValidatorSet.create([Validator.of(raw(one["key"]), one["power"]) for one in entry["initial"]])
    assert _members(validators) == entry["created"]
    assert validators.proposer.address.hex() == entry["proposer"]
    assert encoding.validators_hash(validators).hex() == entry["hash"]
    later = [validators.proposer_of_round(round_).address.hex() for round_ in range(1, 6)]
    assert later == entry["later_rounds"]
    for step in entry["steps"]:
        changes = [Validator.of(raw(one["key"]), one["power"]) for one in step["changes"]]
        validators = validators.next_height(changes)
        assert _members(validators) == step["members"]
        assert validators.proposer.address.hex() == step["proposer"]
        assert encoding.validators_hash(validators).hex() == step["hash"]


WIRES = [raw(entry["wire"]) for entry in VECTORS["blocks"] if "wire" in entry]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_blocks_are_refused_or_are_other_canonical_blocks(data: st.DataObject) -> None:
    wire = bytearray(data.draw(st.sampled_from(WIRES)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(wire) - 1))
        if data.draw(st.booleans()):
            wire[at] = data.draw(st.integers(0, 255))
        else:
            del wire[at:]
            wire += b"\x00"
    try:
        block = encoding.decode_block(bytes(wire))
    except Corrupt:
        return
    assert encoding.encode_block(block) == bytes(wire)


@given(st.binary(max_size=300))
def test_random_bytes_raise_only_the_typed_error(data: bytes) -> None:
    for decode in (encoding.decode_block, encoding.decode_vote, encoding.decode_proposal, encoding.decode_commit):
        try:
            decode(data)
        except Corrupt:
            continue


def test_a_number_written_longer_than_needed_is_refused() -> None:
    """protobuf readers accept 0x81 0x00 for 1; a second encoding of one vote would have a second hash."""
    wire = raw(VECTORS["votes"][0]["wire"])
    assert wire[:2] == b"\x08\x01"
    with pytest.raises(Corrupt, match="canonical"):
        encoding.decode_vote(b"\x08\x81\x00" + wire[2:])


def test_an_oversized_block_is_refused_before_it_is_read() -> None:
    with pytest.raises(Corrupt) as refused:
        encoding.decode_block(bytes(MAX_BLOCK_BYTES + 1))
    assert refused.value.code == "block_too_large"
