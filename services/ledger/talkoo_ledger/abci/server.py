"""CometBFT's ABCI socket: length-delimited requests in, answers out in the same order, on each of its connections.

CometBFT opens four connections (consensus, mempool, query, snapshots) and pipelines: whatever a read brings is parsed
and answered together, with one write, at most `AT_ONCE` requests before the other connections have their turn. All of
them work on one ledger in one event loop, so no lock is needed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

from google.protobuf.message import DecodeError
from talkoo_api.abci.v1 import abci_pb2

from talkoo_core.errors import Conflict, InvalidInput, TalkooError

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""A block's transactions are at most 4 MiB, a snapshot's chunk 1 MiB."""
MAX_CONNECTIONS = 16
AT_ONCE = 64
_LENGTH_BYTES_MAX = 5


class AbciServer:
    """Listens on a Unix socket that only this user may open. `answer` gets one request after the other."""

    def __init__(self, path: Path, answer: Callable[[abci_pb2.Request], abci_pb2.Response]) -> None:
        self.path = path
        self.answer = answer
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Raises Conflict (`socket_taken`) where the socket's folder is another user's."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.parent.stat().st_uid != os.getuid():
            raise Conflict(
                f"{self.path.parent} belongs to another user; remove it, or give the ledger a shorter state_dir",
                code="socket_taken",
            )
        self.path.parent.chmod(0o700)
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Connection(self), path=str(self.path)
        )

    async def run(self) -> None:
        """Until a request fails in a way that must stop this node; raises that error."""
        raise await asyncio.shield(self._failed)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        self.path.unlink(missing_ok=True)
        folder = self.path.parent
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # it may lie in the temporary folder, where nobody else would tidy up

    def join(self, connection: _Connection) -> bool:
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def leave(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def fail(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_result(error)


class _Connection(asyncio.Protocol):
    def __init__(self, server: AbciServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._working = False
        self._writable = True

    # --- of the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are, without saying so
        if not self._server.join(self):
            log.warning("more than %d connections to the ABCI socket; one was refused", MAX_CONNECTIONS)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        self._server.leave(self)
        self._transport = None
        self._buffer.clear()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._working:
            self._work()

    def pause_writing(self) -> None:
        self._writable = False
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable = True
        self._go_on()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # --- inside ---

    def _work(self) -> None:
        """Answer what has arrived, up to `AT_ONCE` requests; then let the other connections work."""
        self._working = False
        transport = self._transport
        if transport is None or transport.is_closing() or not self._writable:
            return
        answers = bytearray()
        place = answered = 0
        try:
            while answered < AT_ONCE and (found := _next_message(self._buffer, place)) is not None:
                begin, place = found
                request = abci_pb2.Request.FromString(bytes(memoryview(self._buffer)[begin:place]))
                _put(answers, self._server.answer(request))
                answered += 1
        except DecodeError as error:
            self._refuse(transport, answers, InvalidInput(f"the ABCI socket sent what cannot be read: {error}"))
            return
        except Exception as error:
            self._refuse(transport, answers, error)
            return
        del self._buffer[:place]
        transport.write(answers)
        if answered == AT_ONCE:
            self._working = True
            transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and self._writable:
            self._transport.resume_reading()
        self._work()

    def _refuse(self, transport: asyncio.Transport, answers: bytearray, error: Exception) -> None:
        """Tell the engine, which stops then, and end this node: neither may go on after an unanswered request."""
        if not isinstance(error, TalkooError):
            log.error("an ABCI request failed", exc_info=error)
        _put(answers, abci_pb2.Response(exception=abci_pb2.ExceptionResponse(error=str(error))))
        transport.write(answers)
        transport.close()
        self._server.fail(error)


def _next_message(buffer: bytearray, place: int) -> tuple[int, int] | None:
    """Where the next message begins and ends, None while it is not complete. Raises InvalidInput (`too_large`)."""
    length = shift = 0
    for index in range(place, min(len(buffer), place + _LENGTH_BYTES_MAX)):
        byte = buffer[index]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            if length > MAX_MESSAGE_BYTES:
                break
            end = index + 1 + length
            return (index + 1, end) if end <= len(buffer) else None
        shift += 7
    else:
        if len(buffer) - place < _LENGTH_BYTES_MAX:
            return None
    raise InvalidInput(f"the ABCI socket announced a message of more than {MAX_MESSAGE_BYTES} bytes", code="too_large")


def _put(out: bytearray, response: abci_pb2.Response) -> None:
    raw = response.SerializeToString()
    length = len(raw)
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    out += raw
