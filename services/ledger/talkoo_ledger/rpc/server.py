"""HTTP and websockets: the RPC as an ASGI application under uvicorn, in the node's own loop.

Public and read-mostly by design, as CometBFT's: no client is known, each bound is for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import uvicorn

from talkoo_core.errors import Exhausted, InvalidInput, TalkooError
from talkoo_ledger.rpc.calls import URI_ID, Answer, Calls, encode, failure, parse_json, read_request, success
from talkoo_ledger.rpc.documents import Document
from talkoo_ledger.rpc.errors import INVALID_REQUEST, METHOD_NOT_FOUND, RpcError
from talkoo_ledger.rpc.parameters import from_json
from talkoo_ledger.rpc.routes import WEBSOCKET_PARAMETERS
from talkoo_ledger.rpc.subscriptions import Subscriptions
from talkoo_runtime.supervision import Background

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1_000_000
"""Of a request, or a websocket's message, as CometBFT's default."""
MAX_QUERY_STRING_BYTES = 256 * 1024
MAX_PARAMETERS = 32
MAX_CONNECTIONS = 512
MAX_WEBSOCKETS = 100
MAX_WAITING_EVENTS = 200
"""Events that wait for one websocket's client; one that is slower loses its subscription."""
MAX_WAITING_BYTES = 4 * 1024 * 1024
"""The same in bytes; one message may go beyond."""
ANSWERS_WAITING_MAX = 16
"""Answers that wait for one websocket's client: until it reads them, nothing more is read from it."""
READ_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 10.0
BACKLOG = 128
KEEP_ALIVE_S = 30
STOP_GRACE_S = 2

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RpcApp:
    """GET with parameters in the URI, JSON-RPC by POST, JSON-RPC and subscriptions over /websocket."""

    def __init__(self, calls: Calls, subscriptions: Subscriptions) -> None:
        self._calls = calls
        self._subscriptions = subscriptions
        self._websockets = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = str(scope.get("path", "")).strip("/").removeprefix("v1").strip("/")
        if scope["type"] == "http":
            await _respond(send, *await self._http(scope, name, receive))
        elif scope["type"] == "websocket":
            await self._websocket(name, receive, send)

    # --- HTTP ---

    async def _http(self, scope: Scope, name: str, receive: Receive) -> tuple[Answer, str]:
        if scope["method"] not in ("GET", "POST", "HEAD"):
            return Answer(405, b"GET or POST\n"), "text/plain"
        query = scope.get("query_string", b"")
        try:
            body = await _body(receive)
            if len(query) > MAX_QUERY_STRING_BYTES:
                raise RpcError(INVALID_REQUEST, f"a query string has at most {MAX_QUERY_STRING_BYTES} bytes")
            if name in WEBSOCKET_PARAMETERS:
                return Answer(404, encode(failure(URI_ID, RpcError(METHOD_NOT_FOUND)))), "application/json"
            if name in self._calls.routes:
                form = body if _content_type(scope) == b"application/x-www-form-urlencoded" else b""
                return await self._calls.uri(name, _parameters(form) | _parameters(query)), "application/json"
        except RpcError as error:
            return Answer(400, encode(failure(None, error))), "application/json"
        if name:
            return Answer(404, b"404 page not found\n"), "text/plain"
        if not body:
            return Answer(200, self._endpoints().encode()), "text/html"
        return await self._calls.body(body), "application/json"

    def _endpoints(self) -> str:
        """What a browser sees."""
        lines = []
        for name, route in sorted(self._calls.routes.items()):
            asked = "&".join(f"{each.name}=_" for each in route.parameters)
            link = html.escape(f"/{name}?{asked}" if asked else f"/{name}")
            lines.append(f'<a href="{link}">{link}</a><br>')
        return f"<html><body>Available endpoints:<br>{''.join(lines)}</body></html>"

    # --- websockets ---

    async def _websocket(self, name: str, receive: Receive, send: Send) -> None:
        await receive()  # the wish to connect
        if name != "websocket" or self._websockets >= MAX_WEBSOCKETS:
            await send({"type": "websocket.close", "code": 1013})
            return
        await send({"type": "websocket.accept"})
        self._websockets += 1
        client = _WebsocketClient(send)
        writing = asyncio.create_task(client.write())
        try:
            await self._converse(client, receive, writing)
        except TimeoutError:
            log.debug("a websocket's client does not read its answers")
        finally:
            self._websockets -= 1
            self._subscriptions.forget(client)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _converse(self, client: _WebsocketClient, receive: Receive, writing: asyncio.Task[None]) -> None:
        """Until either side ends it."""
        while True:
            reading = asyncio.ensure_future(receive())
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                reading.cancel()
                return
            message = reading.result()
            if message["type"] == "websocket.disconnect":
                return
            answer = await self._told(client, message.get("text") or message.get("bytes") or b"")
            if answer is not None:
                await client.answer(encode(answer))

    async def _told(self, client: _WebsocketClient, data: bytes | str) -> Document | None:
        """One request over a websocket; None: it wants no answer."""
        try:
            request = read_request(parse_json(data))
        except RpcError as error:
            return failure(None, error)
        if request.id is None:
            return None
        if request.method not in WEBSOCKET_PARAMETERS:
            return await self._calls.answer(request)
        try:
            given = from_json(WEBSOCKET_PARAMETERS[request.method], request.params)
            if request.method == "subscribe":
                return success(request.id, self._subscriptions.subscribe(client, request.id, given["query"]))
            if request.method == "unsubscribe":
                return success(request.id, self._subscriptions.unsubscribe(client, given["query"]))
            return success(request.id, self._subscriptions.unsubscribe_all(client))
        except TalkooError as error:
            return failure(request.id, RpcError.of(error))
        except RpcError as error:
            return failure(request.id, error)


class _WebsocketClient:
    """What waits for one client. Events find room up to MAX_WAITING_*; answers wait for theirs."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING_EVENTS + ANSWERS_WAITING_MAX)
        self._bytes = 0
        self._too_slow = False

    def has_room(self) -> bool:
        return self._waiting.qsize() < MAX_WAITING_EVENTS and self._bytes < MAX_WAITING_BYTES

    def tell(self, message: bytes) -> None:
        """Where not even its own ANSWERS_WAITING_MAX are left, the client is given up."""
        try:
            self._waiting.put_nowait(message)
            self._bytes += len(message)
        except asyncio.QueueFull:
            self._too_slow = True

    async def answer(self, message: bytes) -> None:
        """Waits for room: a client that does not read is not read either. Raises TimeoutError."""
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await self._waiting.put(message)
        self._bytes += len(message)

    async def write(self) -> None:
        """Until the client is gone, or takes nothing for WRITE_TIMEOUT_S."""
        while not self._too_slow:
            message = await self._waiting.get()
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await self._send({"type": "websocket.send", "text": message.decode()})
            except (TimeoutError, OSError, RuntimeError) as error:
                log.debug("a websocket's client is gone: %s", error)
                return
            self._bytes -= len(message)


class RpcServer:
    """Listens on `rpc_listen`."""

    def __init__(self, app: RpcApp, listen: str) -> None:
        self._app = app
        self._listen = listen
        self._server: uvicorn.Server | None = None
        self._done: asyncio.Task[None] | None = None

    def start(self, background: Background) -> None:
        """Raises Exhausted (`port_taken`), InvalidInput (not a host:port)."""
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        bound = _bind(self._listen)
        self._server = _Server(
            uvicorn.Config(
                self._app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="websockets-sansio",
                ws_max_size=MAX_BODY_BYTES,
                ws_per_message_deflate=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_GRACE_S,
            )
        )
        self._done = background.start("rpc", self._run(bound))

    async def stop(self) -> None:
        """Let open requests end for a moment, then close."""
        if self._done is None or self._server is None:
            return
        self._server.should_exit = True
        await asyncio.wait({self._done}, timeout=STOP_GRACE_S + 1)

    async def _run(self, bound: socket.socket) -> None:
        assert self._server is not None
        with bound:
            await self._server.serve(sockets=[bound])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the service, which stops this server in its turn."""
        yield


async def _body(receive: Receive) -> bytes:
    """Raises RpcError (INVALID_REQUEST): too large, too slow, broken off."""
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise RpcError(INVALID_REQUEST, "the request was broken off")
                size += len(message.get("body", b""))
                if size > MAX_BODY_BYTES:
                    raise RpcError(INVALID_REQUEST, f"error reading request body: more than {MAX_BODY_BYTES} bytes")
                parts.append(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        raise RpcError(INVALID_REQUEST, f"the request's body did not come in {READ_TIMEOUT_S:.0f} s") from None
    return b"".join(parts)


def _parameters(query: bytes) -> dict[str, str]:
    """The first of each name counts. Raises RpcError (INVALID_REQUEST)."""
    try:
        pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError as error:
        raise RpcError(INVALID_REQUEST, f"the parameters cannot be read: {str(error)[:200]}") from None
    return dict(reversed(pairs))


def _content_type(scope: Scope) -> bytes:
    headers = dict(scope.get("headers", ()))
    return bytes(headers.get(b"content-type", b"")).partition(b";")[0].strip().lower()


async def _respond(send: Send, answer: Answer, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(answer.body)).encode())]
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})
    except TimeoutError:
        log.debug("an RPC client does not read its answer")


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInput(f"rpc_listen {listen!r} is not host:port", code="bad_settings")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)
        bound.setblocking(False)
    except (OSError, OverflowError) as error:
        raise Exhausted(
            f"cannot listen on {listen} ({error}); stop the other process or change `rpc_listen`", code="port_taken"
        ) from None
    return bound
