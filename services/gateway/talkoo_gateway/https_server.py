"""uvicorn inside our own loop: our socket, our signals, HTTPS with the service's certificate.

The port is open from the start, but uvicorn and the application are loaded when the first connection comes: they are
half of a gateway's start and a third of its memory, and a gateway that only serves the command line never needs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from talkoo_core.errors import Exhausted, Internal, InvalidInput
from talkoo_gateway.settings import GatewaySettings
from talkoo_runtime.supervision import Background

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

MAX_CONNECTIONS = 512
BACKLOG = 128
STOP_GRACE_S = 2
KEEP_ALIVE_S = 30


class HttpsServer:
    """Serves on `http_listen` the ASGI application that `make` returns; `make` is called at the first connection."""

    def __init__(self, make: Callable[[], ASGIApp], settings: GatewaySettings) -> None:
        self._make = make
        self._settings = settings
        self._server: uvicorn.Server | None = None
        self._done: asyncio.Task[None] | None = None

    async def start(self, background: Background) -> None:
        """Listen. Raises Exhausted (code `port_taken`) or InvalidInput (not a host:port, not a certificate)."""
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        _check_certificate(self._settings)
        bound = _bind(self._settings.http_listen)
        self._done = background.start("https", self._run(bound))

    async def stop(self) -> None:
        """Let open requests end for a moment, then close."""
        if self._done is None:
            return
        if self._server is None:
            self._done.cancel()
        else:
            self._server.should_exit = True
        await asyncio.wait({self._done}, timeout=STOP_GRACE_S + 1)

    async def _run(self, bound: socket.socket) -> None:
        with bound:
            await _readable(bound)
            self._server = await asyncio.to_thread(self._load)
            await self._server.serve(sockets=[bound])
            if not self._server.started:
                raise Internal(f"the HTTPS server on {self._settings.http_listen} did not start; the log says why")

    def _load(self) -> uvicorn.Server:
        import uvicorn

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                """Signals belong to the service, which stops this server in its turn."""
                yield

        return Server(
            uvicorn.Config(
                self._make(),
                ssl_certfile=self._settings.certificate,
                ssl_keyfile=self._settings.private_key,
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


async def _readable(listening: socket.socket) -> None:
    """Wait for a connection, without taking it."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(listening, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(listening)


def _check_certificate(settings: GatewaySettings) -> None:
    """uvicorn reads it at the first connection; that it cannot be read is said at the start."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.certificate, settings.private_key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            f"the certificate {settings.certificate} or its key cannot be used: {error}", code="bad_settings"
        ) from None


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInput(f"http_listen {listen!r} is not host:port", code="bad_settings")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), int(port)))
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise Exhausted(
            f"cannot listen on {listen} ({error.strerror}); stop the other process or change `http_listen`",
            code="port_taken",
        ) from None
    return bound
