"""uvicorn inside our own loop: our socket, our signals, HTTPS with the service's certificate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from talkoo_core.errors import Exhausted, Internal, InvalidInput
from talkoo_gateway.settings import GatewaySettings
from talkoo_runtime.supervision import Background

MAX_CONNECTIONS = 512
BACKLOG = 128
START_TIMEOUT_S = 10.0
START_POLL_S = 0.02
STOP_GRACE_S = 2
KEEP_ALIVE_S = 30


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the service, which stops this server in its turn."""
        yield


class HttpsServer:
    """Serves an ASGI application on `http_listen`."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._listen = settings.http_listen
        self._server = _Server(
            uvicorn.Config(
                app,
                ssl_certfile=settings.certificate,
                ssl_keyfile=settings.private_key,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_GRACE_S,
            )
        )
        self._done: asyncio.Task[None] | None = None

    async def start(self, background: Background) -> None:
        """Bind and serve. Raises Exhausted (code `port_taken`) or InvalidInput (not a host:port)."""
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        bound = _bind(self._listen)
        self._done = background.start("https", self._server.serve(sockets=[bound]))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not self._server.started:
                    if self._done.done():
                        raise Internal(f"the HTTPS server on {self._listen} did not start; the log says why")
                    await asyncio.sleep(START_POLL_S)  # uvicorn has a flag and no event for it
        except TimeoutError:
            raise Internal(f"the HTTPS server on {self._listen} did not start in {START_TIMEOUT_S:.0f} s") from None

    async def stop(self) -> None:
        """Let open requests end for a moment, then close."""
        self._server.should_exit = True
        if self._done is not None:
            await asyncio.wait({self._done}, timeout=STOP_GRACE_S + 1)


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInput(f"http_listen {listen!r} is not host:port", code="bad_settings")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), int(port)))
    except OSError as error:
        bound.close()
        raise Exhausted(
            f"cannot listen on {listen} ({error.strerror}); stop the other process or change `http_listen`",
            code="port_taken",
        ) from None
    return bound
