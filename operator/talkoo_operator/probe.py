"""The liveness probe: `/healthz` says 503 when a leader has not seen the cluster's objects, or a watch is silent."""

from __future__ import annotations

import asyncio
import time

from talkoo_core.errors import Exhausted
from talkoo_operator.freshness import Freshness

STALE_RESYNCS, SILENT_RESYNCS = 3.0, 1.5
"""So many intervals of the resync without a list, or without what a watch owes, are too many."""
READ_TIMEOUT_S = 5.0
MAX_REQUEST_BYTES = 4096


class Probe:
    """`seen` is called when objects were really listed; `freshness` knows what the watches owe."""

    def __init__(self, listen: str, resync_s: float) -> None:
        self._host, _, self._port = listen.rpartition(":")
        self._resync_s = resync_s
        self.freshness = Freshness(time.monotonic)
        self._server: asyncio.Server | None = None
        self._seen_at: float | None = None

    def seen(self) -> None:
        self._seen_at = time.monotonic()

    @property
    def age_s(self) -> float:
        """0 for a replica that waits for the Lease."""
        return 0.0 if self._seen_at is None else time.monotonic() - self._seen_at

    def health(self) -> tuple[bool, str]:
        """Whether all is well, and a line for people."""
        silent_s, plural = self.freshness.behind()
        if silent_s > SILENT_RESYNCS * self._resync_s:
            return False, f"the watch of {plural} has not told for {silent_s:.0f} s what a list shows"
        return self.age_s < STALE_RESYNCS * self._resync_s, f"objects were seen {self.age_s:.0f} s ago"

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
            fresh, words = self.health()
            body = f"{words}\n".encode()
            status = b"200 OK" if fresh else b"503 Service Unavailable"
            head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body))
            writer.write(head + body)
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return  # not a probe
        finally:
            writer.close()
