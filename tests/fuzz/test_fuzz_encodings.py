"""Bytes from strangers: consensus messages, transactions, genesis files, and our own files after damage.

A decoder answers with a value or a TalkooError, never with another exception; what it accepts is the one encoding of
that value; and whatever we can say comes back as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_consensus import encoding as enc
from talkoo_consensus.events import ProposalReceived, Step, TimeoutElapsed, VoteReceived
from talkoo_consensus.types import (
    ABSENT_SIG,
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
    Vote,
)
from talkoo_ledger.application import Application, FinalizeRequest
from talkoo_ledger.genesis import check_genesis, parse_genesis
from talkoo_ledger.sign_state import FILE, SLOT_BYTES, Signer
from talkoo_ledger.wal import Logged, WriteAheadLog, file_name
from talkoo_ledger.wire import decode_transaction

from talkoo_core.errors import Corrupt, Exhausted, InvalidInput, TalkooError
from talkoo_runtime.disk import FolderDisk
from talkoo_runtime.transactions import sign_transaction
from talkoo_sim.fuzzing import almost, fuzzed
from talkoo_sim.ledger_chain import CHAIN_ID, address, key_of, make_genesis

INT32, INT64 = 2**31 - 1, 2**63 - 1
MAX_TX_BYTES = 64 * 1024

hashes = st.binary(min_size=32, max_size=32)
addresses = st.binary(min_size=20, max_size=20)
signatures = st.one_of(st.just(b""), st.binary(min_size=64, max_size=64))
times = st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9)
block_ids = st.builds(BlockId, hashes, st.integers(1, 64), hashes)
votes = st.builds(
    Vote,
    st.sampled_from((SignedType.PREVOTE, SignedType.PRECOMMIT)),
    st.integers(1, INT64),
    st.integers(0, INT32),
    st.one_of(st.just(BlockId()), block_ids),
    times,
    addresses,
    st.integers(0, 127),
    signatures,
)


@st.composite
def proposals(draw: st.DrawFn) -> Proposal:
    round_ = draw(st.integers(0, INT32))
    pol_round = draw(st.integers(-1, round_ - 1))
    return Proposal(draw(st.integers(1, INT64)), round_, pol_round, draw(block_ids), draw(times), draw(signatures))


commit_sigs = st.one_of(
    st.just(ABSENT_SIG),
    st.builds(CommitSig, st.sampled_from((BlockIdFlag.COMMIT, BlockIdFlag.NIL)), addresses, times, signatures),
)
commits = st.builds(
    Commit,
    st.integers(0, INT64),
    st.integers(0, INT32),
    st.one_of(st.just(BlockId()), block_ids),
    st.lists(commit_sigs, max_size=6).map(tuple),
)
headers = st.builds(
    Header,
    st.integers(0, INT64),
    st.integers(0, INT64),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.integers(1, INT64),
    times,
    st.one_of(st.just(BlockId()), block_ids),
    *(st.one_of(st.just(b""), hashes) for _ in range(2)),
    *(hashes for _ in range(6)),
    addresses,
)


@st.composite
def evidence(draw: st.DrawFn) -> DuplicateVoteEvidence:
    pair = sorted((draw(votes), draw(votes)), key=lambda vote: enc.block_id_key(vote.block_id))
    if pair[0].block_id == pair[1].block_id:
        pair[0] = replace(pair[0], block_id=BlockId())
        pair[1] = replace(pair[1], block_id=BlockId(b"\x01" * 32, 1, b"\x02" * 32))
    power = st.integers(1, INT64)
    return DuplicateVoteEvidence(pair[0], pair[1], draw(power), draw(power), draw(times))


blocks = st.builds(
    Block,
    headers,
    st.lists(st.binary(max_size=60), max_size=4).map(lambda txs: Data(tuple(txs))),
    commits,
    st.lists(evidence(), max_size=2).map(tuple),
)

CODECS: dict[str, tuple[Any, Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "vote": (votes, enc.encode_vote, enc.decode_vote),
    "proposal": (proposals(), enc.encode_proposal, enc.decode_proposal),
    "commit": (commits, enc.encode_commit, enc.decode_commit),
    "header": (headers, enc.encode_header, enc.decode_header),
    "evidence": (evidence(), enc.encode_evidence, enc.decode_evidence),
    "block": (blocks, enc.encode_block, enc.decode_block),
}


def test_every_decoder_is_fuzzed() -> None:
    assert {name for name in vars(enc) if name.startswith("decode_")} == {f"decode_{name}" for name in CODECS}


@pytest.mark.parametrize("name", CODECS)
@fuzzed(100)
@given(data=st.data())
def test_what_is_encoded_is_decoded_as_it_was(name: str, data: st.DataObject) -> None:
    values, encode, decode = CODECS[name]
    value = data.draw(values)
    assert decode(encode(value)) == value


def attempted(call: Callable[[], Any]) -> tuple[Any, TalkooError | None]:
    """The value, or the typed error. Any other exception fails the test."""
    try:
        return call(), None
    except TalkooError as error:
        return None, error


@pytest.mark.parametrize("name", CODECS)
@fuzzed(200)
@given(data=st.data())
def test_a_decoder_answers_any_bytes_with_a_value_or_a_typed_error(name: str, data: st.DataObject) -> None:
    values, encode, decode = CODECS[name]
    raw = data.draw(almost(encode(data.draw(values))))
    value, error = attempted(lambda: decode(raw))
    assert (error is None) == (value is not None)
    if error is None:
        assert encode(value) == raw


# --- transactions and genesis ---

ALICE = key_of("alice")
TRANSFER = sign_transaction(ALICE, CHAIN_ID, 0, 1_000, tx_pb2.Transfer(to=address("bob"), amount_utlk=5), "for bread")


def every_message() -> list[bytes]:
    """A signed transaction of every kind, with every field at its default: the rules see what clients forget."""
    kinds = tx_pb2.TxBody.DESCRIPTOR.oneofs_by_name["message"].fields
    return [
        sign_transaction(ALICE, CHAIN_ID, 0, 1_000, getattr(tx_pb2, field.message_type.name)(), "") for field in kinds
    ]


@fuzzed(400)
@given(data=almost(TRANSFER, *every_message()))
def test_a_transaction_is_read_or_refused(data: bytes) -> None:
    read, error = attempted(lambda: decode_transaction(data, MAX_TX_BYTES))
    assert read is not None or isinstance(error, InvalidInput | Exhausted)


@fuzzed(150)
@given(data=st.data())
def test_a_signed_transaction_of_any_content_changes_the_state_by_the_rules_or_not_at_all(data: st.DataObject) -> None:
    """The sender signs what it likes: bounds and rules hold, not the signature."""
    application = Application()
    application.init_chain(make_genesis())
    body = tx_pb2.TxBody.FromString(tx_pb2.SignedTx.FromString(data.draw(st.sampled_from(ALL_TXS))).body)
    kind = body.WhichOneof("message")
    assert kind is not None
    message = getattr(body, kind)
    for field in message.DESCRIPTOR.fields:
        value = data.draw(field_values(field))
        if value is not None:
            setattr(message, field.name, value)
    tx = sign_transaction(ALICE, CHAIN_ID, 0, 1_000, message, "")
    checked = application.check_tx(tx)
    results = finalized(application, [tx])
    assert (checked.code == 0) or results[0].code != 0
    sums_hold(application)


ALL_TXS = [TRANSFER, *every_message()]


def field_values(field: Any) -> st.SearchStrategy[Any]:
    """Values for a scalar field of a message, extreme ones among them; None leaves it as it is."""
    if field.is_repeated or field.message_type is not None:
        return st.none()
    if field.cpp_type == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return st.one_of(st.none(), st.binary(max_size=70))
        known = st.sampled_from(
            (address("bob"), address("alice"), "north", "task-1", "north-1", "0", "../x", "ÿ" * 300)
        )
        return st.one_of(st.none(), known, st.text(st.characters(codec="utf-8"), max_size=20))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == field.CPPTYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values] + [77])
    bits = 32 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    unsigned = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
    highest = 2**bits - 1 if unsigned else 2 ** (bits - 1) - 1
    edges = st.sampled_from((0, 1, highest, highest - 1, highest // 2))
    return st.one_of(st.none(), edges, st.integers(0, highest))


def finalized(application: Application, txs: list[bytes]) -> Any:
    height = application.info().height + 1
    proposer = key_of("north-consensus").public.address
    response = application.finalize_block(FinalizeRequest(height, bytes(32), height * 10**9, proposer, txs))
    application.commit()
    return response.tx_results


def sums_hold(application: Application) -> None:
    """Loading counts every token and compares with the supply record."""
    info = application.info()
    Application().load(list(application.snapshot()), info.height, info.app_hash)


GENESIS = make_genesis().canonical_json()


@fuzzed(300)
@given(data=almost(GENESIS))
def test_a_genesis_file_is_taken_or_refused_with_what_is_wrong(data: bytes) -> None:
    params, error = attempted(lambda: check_genesis(parse_genesis(data)))
    assert params is not None or isinstance(error, InvalidInput)


# --- our own files ---

NORTH = key_of("north-consensus")


def logged() -> list[Logged]:
    block_id = BlockId(b"a" * 32, 1, b"b" * 32)
    vote = Vote(SignedType.PREVOTE, 5, 0, block_id, 7, NORTH.public.address, 0, b"s" * 64)
    block = Block(HEADER, Data((TRANSFER,)), Commit(4, 0, block_id, (ABSENT_SIG,)))
    proposal = Proposal(5, 1, -1, enc.block_id_of(block), 7, b"p" * 64)
    return [VoteReceived(vote), ProposalReceived(proposal, block, timely=False), TimeoutElapsed(5, 1, Step.PREVOTE)]


HEADER = Header(
    11, 1, CHAIN_ID, 5, 7, BlockId(b"a" * 32, 1, b"b" * 32), *(bytes([n]) * 32 for n in range(8)), b"n" * 20
)


def log_bytes(folder: Path) -> tuple[bytes, list[int]]:
    """A whole log, and where its records end."""
    log = WriteAheadLog(FolderDisk(folder))
    log.begin(5)
    ends = []
    for event in logged():
        log.append(event)
        log.sync()
        ends.append((folder / file_name(5)).stat().st_size)
    log.close()
    return (folder / file_name(5)).read_bytes(), ends


def replayed(folder: Path, data: bytes) -> list[Logged]:
    (folder / file_name(5)).write_bytes(data)
    return list(WriteAheadLog(FolderDisk(folder)).replay(5))


def test_a_log_cut_off_at_any_byte_gives_the_records_before_it(tmp_path: Path) -> None:
    whole, ends = log_bytes(tmp_path)
    for size in range(len(whole) + 1):
        assert replayed(tmp_path, whole[:size]) == logged()[: sum(end <= size for end in ends)]


def test_a_log_with_any_byte_changed_before_its_last_record_refuses_and_says_where(tmp_path: Path) -> None:
    whole, ends = log_bytes(tmp_path)
    for place in range(ends[-2]):
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        record = ([0, *ends])[sum(end <= place for end in ends)]
        with pytest.raises(Corrupt, match=f"is damaged at byte {record} "):
            replayed(tmp_path, bytes(damaged))


@fuzzed(200)
@given(data=st.data())
def test_a_damaged_log_gives_no_record_that_was_not_written(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / file_name(5)).unlink(missing_ok=True)
    whole, _ = log_bytes(tmp_path)
    raw = data.draw(almost(whole))
    found, error = attempted(lambda: replayed(tmp_path, raw))
    if error is None:
        assert all(event in logged() for event in found)
    else:
        assert error.code == "wal_damaged"


def sign_state(folder: Path) -> tuple[bytes, list[Vote]]:
    """A sign state with a few signatures, and these."""
    signer = Signer(NORTH, CHAIN_ID, FolderDisk(folder))
    block_id = BlockId(b"a" * 32, 1, b"b" * 32)
    made = [
        signer.sign_vote(Vote(SignedType.PREVOTE, height, 0, block_id, 0, NORTH.public.address, 0), 7)
        for height in range(1, 5)
    ]
    signer.sync()
    return (folder / FILE).read_bytes(), made


def reopened(folder: Path, data: bytes) -> Signer:
    (folder / FILE).write_bytes(data)
    return Signer(NORTH, CHAIN_ID, FolderDisk(folder))


def test_a_sign_state_whose_last_write_stopped_at_any_byte_knows_every_signature_before(tmp_path: Path) -> None:
    whole, made = sign_state(tmp_path)
    last = (len(made) - 1) * SLOT_BYTES
    for written in range(SLOT_BYTES + 1):
        torn = whole[: last + written] + bytes(len(whole) - last - written)
        signer = reopened(tmp_path, torn)
        assert signer.last[0] in (made[-2].height, made[-1].height)
        assert signer.last[0] == made[-1].height or written < SLOT_BYTES
        assert signer.sign_vote(replace(made[-2], signature=b"", timestamp_ns=0), 99) == made[-2]


@fuzzed(300)
@given(data=st.data())
def test_a_sign_state_with_a_changed_byte_refuses_or_has_forgotten_nothing(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / FILE).unlink(missing_ok=True)
    whole, made = sign_state(tmp_path)
    place = data.draw(st.integers(0, len(made) * SLOT_BYTES - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    signer, error = attempted(lambda: reopened(tmp_path, bytes(damaged)))
    if error is None:
        assert signer.last[0] == made[-1].height
    else:
        assert error.code == "sign_state_damaged"


@fuzzed(100)
@given(data=st.binary(max_size=2048))
def test_a_sign_state_of_another_size_refuses(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Corrupt, match="could sign twice"):
        reopened(tmp_path, data)
