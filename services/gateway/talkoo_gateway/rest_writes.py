"""REST handlers that change something: transactions, blobs, answers to paid requests."""

from __future__ import annotations

import base64
import binascii

from starlette.responses import JSONResponse, Response
from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.ledger.v1 import service_pb2

from talkoo_core.errors import InvalidInput
from talkoo_gateway.calls import Call, read_json
from talkoo_gateway.rest_reads import answer, wait_final
from talkoo_gateway.schemas import MAX_INPUT_BYTES, InferBody, SignedTransaction, Wait
from talkoo_gateway.upstreams import called
from talkoo_runtime.blobs import MAX_GATEWAY_BLOB_BYTES

MAX_TRANSACTION_BYTES = 4 * 1024 * 1024
BINARY = "application/octet-stream"


async def send_transaction(call: Call) -> Response:
    """202 with the hash, or with `?wait=` the result. The signature is the authority: no token is needed."""
    assert isinstance(call.query, Wait)
    body = await call.body(2 * MAX_TRANSACTION_BYTES)
    tx = body if _is_binary(call) else _decoded(read_json(SignedTransaction, body).tx)
    if len(tx) > MAX_TRANSACTION_BYTES:
        raise InvalidInput(f"a transaction has at most {MAX_TRANSACTION_BYTES >> 20} MiB")
    sent = await called(call.desk.up.ledger.Broadcast, service_pb2.BroadcastRequest(tx=tx))
    if call.query.wait:
        return answer(await wait_final(call, sent.hash, call.query.wait))
    return JSONResponse({"hash": sent.hash.hex()}, 202, {"Location": f"/v1/transactions/{sent.hash.hex()}"})


async def put_blob(call: Call) -> Response:
    info = await call.desk.blobs.put(call.body_parts(MAX_GATEWAY_BLOB_BYTES))
    return JSONResponse(
        {"sha256": info.sha256, "size_bytes": info.size_bytes}, 201, {"Location": f"/v1/blobs/{info.sha256}"}
    )


async def infer(call: Call) -> Response:
    body = read_json(InferBody, await call.body(2 * MAX_INPUT_BYTES))
    request = agent_pb2.InferRequest(
        request_id=call.path["request"], version=body.version, input_json=body.input_json.encode()
    )
    return answer(await call.desk.infer(request))


def _is_binary(call: Call) -> bool:
    return call.request.headers.get("content-type", "").partition(";")[0].strip().lower() == BINARY


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"`tx` is not base64; or send the bytes themselves as {BINARY}") from None
