"""JSON-RPC 2.0: from the bytes of a request, or a URI, to the bytes of an answer. Every error is an answer."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from talkoo_core.errors import TalkooError
from talkoo_ledger.rpc.documents import Document
from talkoo_ledger.rpc.errors import INTERNAL_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, PARSE_ERROR, RpcError
from talkoo_ledger.rpc.parameters import INT64_MAX, from_json, from_uri, is_unicode
from talkoo_ledger.rpc.routes import Route

log = logging.getLogger(__name__)

MAX_BATCH = 10
"""Requests in one body, as CometBFT's default."""
MAX_ID_LENGTH = 256
URI_ID = -1
CALLS_AT_ONCE = 4
"""Calls that are being worked on: each in steps of a block at most, with consensus between them."""

Id = str | int | None
_NO_ID: Id = None


@dataclass(frozen=True, slots=True)
class Request:
    """`id` None: a notification, which is not answered."""

    id: Id
    method: str
    params: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """HTTP's status and body; an empty body for notifications."""

    status: int
    body: bytes


class Calls:
    """Dispatches to the routes."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self.routes = routes
        self._room = asyncio.Semaphore(CALLS_AT_ONCE)

    async def body(self, data: bytes) -> Answer:
        """A POST's body: a request or a batch of them."""
        try:
            parsed = parse_json(data)
            requests = [read_request(each) for each in parsed] if isinstance(parsed, list) else [read_request(parsed)]
        except RpcError as error:
            return Answer(500, encode(failure(_NO_ID, error)))
        if len(requests) > MAX_BATCH:
            many = f"batch request exceeds maximum ({MAX_BATCH}) allowed number of requests"
            return Answer(200, encode(failure(_NO_ID, RpcError(INVALID_REQUEST, many))))
        answers = [await self.answer(request) for request in requests if request.id is not None]
        if not answers:
            return Answer(200, b"")
        return Answer(200, encode(answers[0] if len(answers) == 1 else answers))

    async def uri(self, method: str, given: Mapping[str, str]) -> Answer:
        """`/method?name=value`, for a method that there is."""
        route = self.routes[method]
        try:
            result = await self._run(route, from_uri(route.parameters, given))
        except RpcError as error:
            return Answer(500, encode(failure(URI_ID, error)))
        return Answer(200, encode(success(URI_ID, result)))

    async def answer(self, request: Request) -> Document:
        route = self.routes.get(request.method)
        try:
            if route is None:
                raise RpcError(METHOD_NOT_FOUND)
            return success(request.id, await self._run(route, from_json(route.parameters, request.params)))
        except RpcError as error:
            return failure(request.id, error)

    async def _run(self, route: Route, arguments: dict[str, Any]) -> Document:
        if route.waits:
            return await run(route, arguments)
        async with self._room:
            await asyncio.sleep(0)
            return await run(route, arguments)


async def run(route: Route, arguments: dict[str, Any]) -> Document:
    """Raises RpcError. What is our own fault is logged and does not reach the node's loop."""
    try:
        result = route.call(**arguments)
        return await result if inspect.isawaitable(result) else result
    except TalkooError as error:
        raise RpcError.of(error) from error
    except Exception as error:
        log.exception("an RPC call failed by our own fault")
        raise RpcError(INTERNAL_ERROR, "this node failed to answer; its log says why") from error


def parse_json(data: bytes | str) -> Any:
    """Raises RpcError (PARSE_ERROR)."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RpcError(PARSE_ERROR, f"error unmarshaling request: {str(error)[:200]}") from None


def read_request(parsed: Any) -> Request:
    """Raises RpcError (PARSE_ERROR)."""
    if not isinstance(parsed, dict):
        raise RpcError(PARSE_ERROR, "a request is an object with jsonrpc, id, method and params")
    id_ = parsed.get("id")
    if isinstance(id_, float) and abs(id_) < 2**53:
        id_ = int(id_)
    if isinstance(id_, str):
        good = len(id_) <= MAX_ID_LENGTH and is_unicode(id_)
    else:
        good = id_ is None or (isinstance(id_, int) and not isinstance(id_, bool) and abs(id_) <= INT64_MAX)
    if not good:
        raise RpcError(PARSE_ERROR, f"the id is a text of at most {MAX_ID_LENGTH} characters or a number")
    method = parsed.get("method", "")
    if not isinstance(method, str):
        raise RpcError(PARSE_ERROR, "the method is a text")
    return Request(id_, method, parsed.get("params"))


def success(id_: Id, result: Any) -> Document:
    return {"jsonrpc": "2.0", "id": id_, "result": result}


def failure(id_: Id, error: RpcError) -> Document:
    """Without an id where none could be read."""
    head: Document = {"jsonrpc": "2.0"} if id_ is None else {"jsonrpc": "2.0", "id": id_}
    return head | {"error": error.document()}


def encode(document: Any) -> bytes:
    return msgspec.json.encode(document)
