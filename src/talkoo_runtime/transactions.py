"""Making and signing transactions: what every client of the ledger shares."""

from __future__ import annotations

import hashlib

from google.protobuf.message import Message
from talkoo_api.ledger.v1 import tx_pb2

from talkoo_core.errors import InvalidInput
from talkoo_core.signing import PrivateKey

SIGN_DOMAIN = b"talkoo/tx/v1\n"
MEMO_MAX_BYTES = 256

_FIELD_OF_MESSAGE = {
    field.message_type.full_name: field.name
    for field in tx_pb2.TxBody.DESCRIPTOR.oneofs_by_name["message"].fields
    if field.message_type is not None
}


def sign_transaction(
    key: PrivateKey, chain_id: str, nonce: int, fee_utlk: int, message: Message, memo: str = ""
) -> bytes:
    """Serialize and sign one transaction; `message` is any member of `TxBody.message`. Returns SignedTx bytes."""
    field = _FIELD_OF_MESSAGE.get(message.DESCRIPTOR.full_name)
    assert field is not None, f"{message.DESCRIPTOR.full_name} is not a transaction"
    if len(memo.encode()) > MEMO_MAX_BYTES:
        raise InvalidInput(f"the memo has more than {MEMO_MAX_BYTES} bytes; shorten it", code="memo_too_long")
    body = tx_pb2.TxBody(chain_id=chain_id, nonce=nonce, fee_utlk=fee_utlk, memo=memo)
    getattr(body, field).CopyFrom(message)
    raw = body.SerializeToString(deterministic=True)
    signed = tx_pb2.SignedTx(body=raw, public_key=key.public.raw, signature=key.sign(SIGN_DOMAIN + raw))
    return signed.SerializeToString(deterministic=True)


def transaction_hash(signed: bytes) -> bytes:
    """SHA-256 of the SignedTx bytes: the transaction's name, and the leaf of the block's data hash."""
    return hashlib.sha256(signed).digest()
