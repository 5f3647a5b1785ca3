"""The liveness probe: `/healthz` says 503 when a leader has not seen the cluster's objects for too long."""

from __future__ import annotations

import asyncio
import time

from talkoo_core.errors import Exhausted

STALE_S = 180.0
READ_TIMEOUT_S = 5.0
MAX_REQUEST_BYTES = 4096


class Probe:
    """A watch may die in silence while its process lives; `seen` is called when objects were really listed."""

    def __init__(self, listen: str) -> None:
        self._host, _, self._port = listen.rpartition(":")
        self._server: asyncio.Server | None = None
        self._seen_at: float | None = None

    def seen(self) -> None:
        self._seen_at = time.monotonic()

    @property
    def age_s(self) -> float:
        """0 for a replica that waits for the Lease."""
        return 0.0 if self._seen_at is None else time.monotonic() - self._seen_at

    async def __aenter__(self) -> Probe:
        try:
            self._server = await asyncio.start_server(self._answer, self._host, int(self._port))
        except OSError as error:
            raise Exhausted(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}", code="port_taken"
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.wait_for(reader.readuntil(b"\r\n"), READ_TIMEOUT_S)
            fresh = self.age_s < STALE_S
            body = f"objects were seen {self.age_s:.0f} s ago\n".encode()
            status = b"200 OK" if fresh else b"503 Service Unavailable"
            head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body))
            writer.write(head + body)
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return  # not a probe
        finally:
            writer.close()
