"""The only module of the ledger's rules that knows both proto and domain types.

From other people's bytes to transactions that are well formed (every bound is checked here, by `bounds`), and from
records to the bytes that stand in the state tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import msgspec
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto
from google.protobuf.unknown_fields import UnknownFieldSet
from talkoo_api.ledger.v1 import service_pb2, state_pb2, tx_pb2

from talkoo_core.errors import Corrupt, Exhausted, InvalidInput
from talkoo_core.ids import address_of_key
from talkoo_core.signing import PUBLIC_KEY_BYTES, SIGNATURE_BYTES
from talkoo_ledger import bounds, codec, records, tree
from talkoo_ledger.context import Event
from talkoo_ledger.messages import Message, Transaction, Verdict
from talkoo_ledger.records import Record
from talkoo_runtime.transactions import MEMO_MAX_BYTES, SIGN_DOMAIN

if TYPE_CHECKING:
    from talkoo_ledger.application import QueryResult
    from talkoo_ledger.transition import TxResult

_RECORD_TYPES: dict[str, tuple[type[Any], type[Any]]] = {
    "accounts": (records.Account, state_pb2.Account),
    "accusations": (records.AmnesiaAccusation, state_pb2.AmnesiaAccusation),
    "applications": (records.MembershipApplication, state_pb2.MembershipApplication),
    "chain": (records.Chain, state_pb2.Chain),
    "models": (records.ModelVersion, state_pb2.ModelVersion),
    "nodes": (records.Node, state_pb2.Node),
    "organizations": (records.Organization, state_pb2.Organization),
    "params": (records.Params, state_pb2.Params),
    "payments": (records.Payment, state_pb2.Payment),
    "requests": (records.ModelRequest, state_pb2.ModelRequest),
    "segments": (records.Segment, state_pb2.Segment),
    "supply": (records.Supply, state_pb2.Supply),
    "tasks": (records.Task, state_pb2.Task),
    "unbonding": (records.Unbonding, state_pb2.Unbonding),
    "validator_sets": (records.ValidatorsAt, state_pb2.ValidatorsAt),
}
for _, _proto in _RECORD_TYPES.values():
    codec.check_same_fields(_proto.DESCRIPTOR)
for _field in tx_pb2.TxBody.DESCRIPTOR.oneofs_by_name["message"].fields:
    codec.check_same_fields(cast(Descriptor, _field.message_type))


def decode_transaction(data: bytes, max_tx_bytes: int) -> Transaction:
    """Bytes to a well-formed transaction; the signature is not checked here.

    Raises InvalidInput (`malformed`, `not_canonical`, `unknown_field`, `no_message`, `bad_field`, …) and Exhausted
    (`tx_too_large`).
    """
    if len(data) > max_tx_bytes:
        raise Exhausted(
            f"the transaction has {len(data)} bytes, the ledger takes {max_tx_bytes}; put large things into blobs",
            code="tx_too_large",
        )
    signed = _parse(tx_pb2.SignedTx, data, "the transaction")
    if signed.SerializeToString(deterministic=True) != data:
        # One signed transaction has one hash: nobody in between can give it another.
        raise InvalidInput("the transaction is not in its shortest encoding; encode it again", code="not_canonical")
    if len(signed.public_key) != PUBLIC_KEY_BYTES or len(signed.signature) != SIGNATURE_BYTES:
        raise InvalidInput(
            f"a transaction carries a key of {PUBLIC_KEY_BYTES} and a signature of {SIGNATURE_BYTES} bytes",
            code="malformed",
        )
    body = _parse(tx_pb2.TxBody, signed.body, "the transaction's body")
    kind = body.WhichOneof("message")
    if kind is None:
        raise InvalidInput("the transaction says nothing: set one message of its body", code="no_message")
    bounds.check_text(body.memo, "memo", MEMO_MAX_BYTES)
    bounds.check_amount(body.fee_utlk, "fee_utlk")
    proto = getattr(body, kind)
    message = cast(Message, codec.read(proto, codec.struct_of(proto.DESCRIPTOR)))
    bounds.check_message(message)
    return Transaction(
        hash=hashlib.sha256(data).digest(),
        sender=address_of_key(signed.public_key),
        public_key=signed.public_key,
        signature=signed.signature,
        signed_bytes=SIGN_DOMAIN + signed.body,
        chain_id=body.chain_id,
        nonce=body.nonce,
        fee_utlk=body.fee_utlk,
        memo=body.memo,
        kind=kind,
        message=message,
        size_bytes=len(data),
    )


def decode_verdict(data: bytes) -> Verdict:
    """The verdict inside a reveal. Raises InvalidInput."""
    verdict = codec.read(_parse(tx_pb2.Verdict, data, "the verdict"), Verdict)
    bounds.check_verdict(verdict)
    return verdict


def encode_record(module: str, record: Record) -> bytes:
    """A record as it stands in the state tree."""
    return codec.encode(record, _RECORD_TYPES[module][1])


def record_proto(module: str, data: bytes) -> Proto:
    """A record from the state tree as the message of `state.proto`. Raises Corrupt (code `bad_state_value`)."""
    decode_record(module, data)
    message: Proto = _RECORD_TYPES[module][1].FromString(data)
    return message


def decode_record(module: str, data: bytes) -> Record:
    """A record from the state tree. Raises Corrupt (code `bad_state_value`)."""
    if module not in _RECORD_TYPES:
        raise Corrupt(f"the state has no module {module!r}", code="bad_state_value")
    struct, proto_type = _RECORD_TYPES[module]
    try:
        return cast(Record, codec.read(proto_type.FromString(data), struct))
    except (DecodeError, ValueError) as error:
        raise Corrupt(f"a value of module {module!r} cannot be read: {error}", code="bad_state_value") from None


def event_proto(event: Event) -> service_pb2.Event:
    return service_pb2.Event(
        type=event.type,
        subject=event.subject,
        attributes=[service_pb2.Attribute(key=key, value=value) for key, value in event.attributes],
    )


def tx_result_proto(
    result: TxResult, height: int, index: int, events: Sequence[service_pb2.Event] | None = None
) -> service_pb2.TxResult:
    """`events`: the result's events where they are encoded already."""
    return service_pb2.TxResult(
        hash=result.hash,
        height=height,
        index=index,
        code=result.code,
        family=result.family,
        error_code=result.error_code,
        message=result.message,
        events=[event_proto(event) for event in result.events] if events is None else events,
        kind=result.kind,
        sender=result.sender,
        born_id=result.born_id,
    )


def state_proof_proto(key: str, result: QueryResult) -> service_pb2.StateProof:
    """The proofs of a query that asked for them."""
    assert result.proof is not None
    assert result.module_proof is not None
    other_key_hash, other_value_hash = result.proof.other or (b"", b"")
    return service_pb2.StateProof(
        module_root=result.module_root,
        path=result.proof.siblings,
        bitmap=tree.bitmap(key, len(result.proof.siblings)),
        module_aunts=result.module_proof.aunts,
        module_index=result.module_proof.index,
        module_total=result.module_proof.total,
        other_key_hash=other_key_hash,
        other_value_hash=other_value_hash,
    )


def verify_state_proof(app: bytes, module: str, key: str, value: bytes | None, proof: service_pb2.StateProof) -> None:
    """Check a value (None: its absence) against an app hash from a block header. Raises Corrupt (code `bad_proof`)."""
    other = (proof.other_key_hash, proof.other_value_hash) if proof.other_key_hash else None
    aunts = tuple(proof.module_aunts)
    tree.verify(proof.module_root, key, value, tree.Proof(tuple(proof.path), other))
    tree.verify_module(app, module, proof.module_root, tree.ModuleProof(proof.module_index, proof.module_total, aunts))


def _parse(proto_type: type[Any], data: bytes, what: str) -> Any:
    try:
        proto = proto_type.FromString(data)
    except (DecodeError, ValueError) as error:
        raise InvalidInput(f"{what} cannot be read: {error}", code="malformed") from None
    size_bytes = proto.ByteSize()
    proto.DiscardUnknownFields()
    if proto.ByteSize() != size_bytes:
        _name_unknown(proto_type.FromString(data), what)
    return proto


@cache
def _message_fields(descriptor: Descriptor) -> tuple[tuple[str, bool], ...]:
    return tuple((field.name, field.is_repeated) for field in descriptor.fields if field.message_type is not None)


def _name_unknown(proto: Proto, what: str) -> None:
    """Raises InvalidInput (`unknown_field`) that names the message with such a field."""
    if len(UnknownFieldSet(proto)):
        raise InvalidInput(
            f"{what} has a field in {proto.DESCRIPTOR.name} that this ledger does not know; "
            "was it made by a newer version?",
            code="unknown_field",
        )
    for name, repeated in _message_fields(proto.DESCRIPTOR):
        if repeated:
            for each in getattr(proto, name):
                _name_unknown(each, what)
        elif proto.HasField(name):
            _name_unknown(getattr(proto, name), what)


def params_from_mapping(values: dict[str, int]) -> records.Params:
    """Genesis parameters by name. Raises InvalidInput for an unknown, missing or out-of-range one."""
    try:
        params = msgspec.convert(values, records.Params)
        encode_record("params", params)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise InvalidInput(f"the genesis parameters are wrong: {error}", code="bad_genesis") from None
    return params
