"""What a gateway tells Prometheus of its REST server; its gRPC calls are counted as every service's are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from talkoo_runtime.metrics import before_scrape, counter, exposed, gauge, histogram

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS = counter(
    "talkoo_gateway_requests_total",
    "REST requests by method, path of the route and status; `none` where there is no such route.",
    ["method", "path", "status"],
    max_series=512,
)
REQUEST_SECONDS = histogram(
    "talkoo_gateway_request_seconds", "Time to the first byte of a REST answer.", ["method", "path"]
)
STREAMS = gauge("talkoo_gateway_streams", "Readers of logs and progress at the moment.")
NO_ROUTE = "none"
PATH = "talkoo.path"
"""Where a route leaves its path in the scope of a request."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others are booked together: a caller may invent any."""


def watch_streams(count: Callable[[], int]) -> None:
    before_scrape(lambda: STREAMS.set(count()))


def counted(app: ASGIApp) -> ASGIApp:
    """The same application, with its answers counted when somebody keeps count."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not exposed():
            await app(scope, receive, send)
            return
        began = time.monotonic()

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                _count(scope, str(message["status"]), time.monotonic() - began)
            await send(message)

        await app(scope, receive, sent)

    return call


def _count(scope: Scope, status: str, seconds: float) -> None:
    method = scope["method"] if scope["method"] in METHODS else "other"
    path = scope.get(PATH, NO_ROUTE)
    REQUESTS.add(method=method, path=path, status=status)
    REQUEST_SECONDS.observe(seconds, method=method, path=path)
