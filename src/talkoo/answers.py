"""The answer of a model, checked: it is what the paid node signed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.gateway.v1 import gateway_pb2

from talkoo_core.errors import Corrupt
from talkoo_core.ids import address_of_key
from talkoo_core.signing import PUBLIC_KEY_BYTES, PublicKey

ANSWER_DOMAIN = b"talkoo/answer/v1\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """Outputs in the order of the inputs, and what proves who gave them."""

    outputs: Any
    version: str
    request_id: str
    node_id: str
    node_name: str
    price_utlk: int
    output_sha256: str
    signature: str


def check_answer(request_id: str, quote: gateway_pb2.Quote, response: agent_pb2.InferResponse) -> Answer:
    """Raises Corrupt unless the hash is the output's, the key the paid node's, and the signature that key's."""
    sha256 = hashlib.sha256(response.output_json).digest()
    if sha256 != response.output_sha256:
        raise Corrupt("the answer is not what its hash says; the gateway or the node changed it")
    if len(response.public_key) != PUBLIC_KEY_BYTES or address_of_key(response.public_key) != quote.node_id:
        raise Corrupt(f"the answer is not signed by {quote.node_name}, the node that was paid")
    signed = ANSWER_DOMAIN + request_id.encode() + b"\n" + sha256
    if not PublicKey(response.public_key).verify(response.signature, signed):
        raise Corrupt(f"the signature of {quote.node_name} under the answer is wrong")
    try:
        outputs = json.loads(response.output_json)
    except ValueError:
        raise Corrupt(f"{quote.node_name} answered something that is not JSON") from None
    return Answer(
        outputs=outputs,
        version=quote.version,
        request_id=request_id,
        node_id=quote.node_id,
        node_name=quote.node_name,
        price_utlk=quote.price_utlk,
        output_sha256=sha256.hex(),
        signature=response.signature.hex(),
    )
