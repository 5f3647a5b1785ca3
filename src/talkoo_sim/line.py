"""A line between a client and a server that counts who dials, takes its time and may be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

CHUNK_BYTES = 1 << 16


class Line:
    """To `target` (host:port). `late_s` in each direction; cut, once, after `cut_after_bytes` of both together."""

    def __init__(self, target: str, *, late_s: float = 0.0, cut_after_bytes: int | None = None) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._late_s = late_s
        self._left = cut_after_bytes
        self.dialled = 0
        self.cuts = 0
        self._connections: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """Its host:port. Whoever dialled has hung up when it is left."""
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dialled += 1
        self._connections.append(asyncio.create_task(self._carry(reader, writer)))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        both = [asyncio.create_task(self._pass(*ends)) for ends in ((reader, far_writer), (far_reader, writer))]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        for end in (writer, far_writer):
            end.transport.abort()
            with contextlib.suppress(OSError):
                await end.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._is_cut(len(data)):
                return
            await asyncio.sleep(self._late_s)
            writer.write(data)
            await writer.drain()

    def _is_cut(self, more_bytes: int) -> bool:
        if self._left is None:
            return False
        self._left -= more_bytes
        if self._left >= 0 or self.cuts:
            return False
        self.cuts += 1
        return True
