"""The REST application: routes from the table of operations, one place for tokens, queries and errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from talkoo_core.errors import TalkooError
from talkoo_gateway.calls import Call, read_query
from talkoo_gateway.desk import Desk
from talkoo_gateway.metrics import PATH, counted
from talkoo_gateway.openapi import document
from talkoo_gateway.operations import OPERATIONS, Operation
from talkoo_gateway.problems import on_fault, on_http_error, on_talkoo_error
from talkoo_gateway.tokens import require_token

OPENAPI_PATH = "/openapi.json"
API_VERSION = "1"


def make_app(desk: Desk, token: str) -> ASGIApp:
    """An ASGI application over the desk; `token` is what writes must bear."""
    described = document(OPERATIONS, API_VERSION)

    async def openapi(_: Request) -> Response:
        return JSONResponse(described)

    routes = [Route(OPENAPI_PATH, openapi, methods=["GET"])]
    for path in dict.fromkeys(operation.path for operation in OPERATIONS):
        methods = {operation.method: operation for operation in OPERATIONS if operation.path == path}
        routes.append(Route(path, _endpoint(methods, desk, token), methods=list(methods)))
    return counted(
        Starlette(
            routes=routes,
            exception_handlers={TalkooError: on_talkoo_error, HTTPException: on_http_error, Exception: on_fault},
        )
    )


def _endpoint(methods: dict[str, Operation], desk: Desk, token: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        operation = methods.get(request.method) or methods["GET"]  # HEAD is answered as GET
        request.scope[PATH] = operation.path
        if operation.token:
            require_token(request, token)
        query = read_query(operation.query, request)
        return await operation.handler(Call(desk, request, request.path_params, query))

    return endpoint
