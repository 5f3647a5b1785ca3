"""REST handlers that read: the ledger, the scheduler, the validator, streams of logs and progress."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf.message import Message
from starlette.responses import JSONResponse, Response, StreamingResponse
from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.ledger.v1 import service_pb2, state_pb2
from talkoo_api.scheduler.v1 import scheduler_pb2
from talkoo_api.validator.v1 import validator_pb2

from talkoo_core.errors import InvalidInput, NotFound, TalkooError, Unavailable
from talkoo_gateway.calls import Call
from talkoo_gateway.problems import problem
from talkoo_gateway.quotes import model_key, parse_version
from talkoo_gateway.schemas import AuditQuery, BlockRange, LogQuery, Page, Wait, checked
from talkoo_gateway.upstreams import called, streamed
from talkoo_runtime.plain import plain

KEEP_ALIVE_S = 15.0
"""A comment goes out after so long a silence, so that proxies keep the stream."""
PROBE_TIMEOUT_S = 2.0
SHA256_HEX = 64
Handler = Callable[[Call], Awaitable[Response]]


def answer(message: Message, status: int = 200) -> Response:
    return JSONResponse(checked(message).model_dump(mode="json"), status)


def get_one(module: str, kind: type[Message], parameter: str) -> Handler:
    """A handler that reads one value of the state."""

    async def handler(call: Call) -> Response:
        return answer(await call.desk.up.reader.get(module, call.path[parameter], kind))

    return handler


def get_list(module: str, kind: type[Message], below: str = "") -> Handler:
    """A handler that lists a module, or what lies below a path parameter in it."""

    async def handler(call: Call) -> Response:
        query = call.query
        assert isinstance(query, Page)
        request = service_pb2.ListRequest(
            module=module,
            prefix=f"{call.path[below]}/" if below else "",
            after=query.after,
            limit=query.limit,
            reverse=query.reverse,
        )
        found = await called(call.desk.up.ledger.List, request)
        items = [checked(kind.FromString(entry.value)).model_dump(mode="json") for entry in found.entries]
        following = found.entries[-1].key if found.more and found.entries else None
        return JSONResponse({"items": items, "next": following, "height": found.height})

    return handler


async def status(call: Call) -> Response:
    return answer(await call.desk.up.reader.status())


async def supply(call: Call) -> Response:
    return answer(await called(call.desk.up.ledger.GetSupply, service_pb2.GetSupplyRequest()))


async def params(call: Call) -> Response:
    return answer(await called(call.desk.up.ledger.GetParams, service_pb2.GetParamsRequest()))


async def genesis(call: Call) -> Response:
    found = await called(call.desk.up.ledger.GetGenesis, service_pb2.GetGenesisRequest())
    return Response(found.json, media_type="application/json")


async def model(call: Call) -> Response:
    name, number = parse_version(call.path["version"])
    if number is None:
        return answer(await call.desk.model(name))
    return answer(await call.desk.up.reader.get("models", model_key(name, number), state_pb2.ModelVersion))


async def quote(call: Call) -> Response:
    return answer(await call.desk.quote(call.path["version"]))


async def explain(call: Call) -> Response:
    request = scheduler_pb2.ExplainRequest(task_id=call.path["task"])
    return answer(await called(call.desk.up.scheduler.Explain, request))


async def offers(call: Call) -> Response:
    return answer(await called(call.desk.up.scheduler.ListOffers, scheduler_pb2.ListOffersRequest()))


async def audits(call: Call) -> Response:
    assert isinstance(call.query, AuditQuery)
    request = validator_pb2.ListAuditsRequest(task_id=call.query.task_id)
    return answer(await called(call.desk.up.validator.ListAudits, request))


async def blocks(call: Call) -> Response:
    """What happened in a range of decided blocks."""
    assert isinstance(call.query, BlockRange)
    newest = (await call.desk.up.reader.status()).height
    first = call.query.from_height or max(newest - call.query.limit + 1, 1)
    last = min(first + call.query.limit - 1, newest)
    items: list[Any] = []
    if first <= last:
        stream = streamed(call.desk.up.ledger.Follow(service_pb2.FollowRequest(from_height=first)))
        async for block in stream:
            items.append(checked(block).model_dump(mode="json"))
            if block.height >= last:
                break
        await stream.aclose()
    return JSONResponse({"items": items, "next": str(last + 1) if last < newest else None, "height": newest})


async def transaction(call: Call) -> Response:
    """The result of a transaction; 404 while it is not final and nothing says that it exists."""
    assert isinstance(call.query, Wait)
    text = call.path["hash"]
    try:
        tx_hash = bytes.fromhex(text)
    except ValueError:
        tx_hash = b""
    if len(text) != SHA256_HEX or not tx_hash:
        raise InvalidInput(f"{text!r} is not the hash of a transaction: those have {SHA256_HEX} hex digits")
    return answer(await wait_final(call, tx_hash, call.query.wait))


async def wait_final(call: Call, tx_hash: bytes, wait_s: float) -> service_pb2.TxResult:
    request = service_pb2.WaitTxRequest(hash=tx_hash, timeout_ms=int(wait_s * 1000))
    try:
        result: service_pb2.TxResult = await called(call.desk.up.ledger.WaitTx, request, wait_s + 10)
    except Unavailable as error:
        if error.code != "not_final_yet":
            raise
        raise NotFound(
            f"transaction {tx_hash.hex()[:16]}… is not final; ask again with ?wait=30", code="not_final_yet"
        ) from None
    return result


async def logs(call: Call) -> Response:
    assert isinstance(call.query, LogQuery)
    await call.desk.up.reader.task(call.path["task"])
    request = agent_pb2.LogsRequest(task_id=call.path["task"], follow=call.query.follow, tail_lines=call.query.tail)
    lines = call.desk.logs(request)
    if call.query.follow:
        return events(lines)
    return JSONResponse({"items": [plain(line) async for line in lines], "next": None, "height": 0})


async def progress(call: Call) -> Response:
    await call.desk.up.reader.task(call.path["task"])
    return events(call.desk.progress(agent_pb2.ProgressRequest(task_id=call.path["task"])))


def events(messages: AsyncIterator[Message]) -> Response:
    """Server-sent events: one `data:` line of JSON for each message, `event: problem` when the stream breaks."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_event_lines(messages), 200, headers, "text/event-stream")


async def _event_lines(messages: AsyncIterator[Message]) -> AsyncIterator[str]:
    pending: asyncio.Future[Message] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(messages))
            done, _ = await asyncio.wait({pending}, timeout=KEEP_ALIVE_S)
            if not done:
                yield ": still here\n\n"
                continue
            ready, pending = pending, None
            yield f"data: {json.dumps(plain(ready.result()), ensure_ascii=False)}\n\n"
    except StopAsyncIteration:
        yield "event: end\ndata: {}\n\n"
    except TalkooError as error:
        document = problem(error.family, error.code, error.message)
        yield f"event: problem\ndata: {json.dumps(document, ensure_ascii=False)}\n\n"
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await messages.aclose()  # type: ignore[attr-defined]  # always an async generator


async def _next(messages: AsyncIterator[Message]) -> Message:
    return await anext(messages)


async def healthz(_: Call) -> Response:
    return JSONResponse({"ok": True, "detail": ""})


async def readyz(call: Call) -> Response:
    """Ready when the own ledger node answers and has caught up."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            found = await call.desk.up.reader.status()
    except (TalkooError, TimeoutError) as error:
        return JSONResponse({"ok": False, "detail": f"the ledger node does not answer: {error}"}, 503)
    if found.catching_up:
        return JSONResponse({"ok": False, "detail": f"the ledger node catches up, at height {found.height}"}, 503)
    return JSONResponse({"ok": True, "detail": f"height {found.height}"})


async def blob(call: Call) -> Response:
    """The first part is awaited before the answer begins: a missing or damaged blob is a problem, not a short body."""
    sha256 = call.path["sha256"]
    stream = call.desk.blobs.get(sha256)
    first = await anext(stream, b"")
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "public, max-age=31536000, immutable"}
    return StreamingResponse(_joined(first, stream), 200, headers, "application/octet-stream")


async def _joined(first: bytes, stream: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    try:
        yield first
        async for part in stream:
            yield part
    finally:
        await stream.aclose()
