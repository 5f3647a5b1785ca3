"""CometBFT's JSON-RPC over one websocket that is opened again whenever it breaks; calls are pipelined."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from talkoo_core.errors import Exhausted, Failed, Unavailable

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""A block of 4 MiB as JSON, with room."""
MAX_CALLS = 20_000
"""Calls that wait for their answer."""
CALL_TIMEOUT_S = 10.0
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0


class CometRpc:
    """`on_connected` is called after each connection was made."""

    def __init__(self, address: str, on_connected: Callable[[], None]) -> None:
        self._url = f"ws://{address}/websocket"
        self._on_connected = on_connected
        self._connection: ClientConnection | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def run(self) -> None:
        """Keep the connection, for ever."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                async with connect(
                    self._url, max_size=MAX_MESSAGE_BYTES, compression=None, proxy=None, ping_interval=None
                ) as connection:
                    self._connection, pause = connection, FIRST_PAUSE_S
                    self._on_connected()
                    async for text in connection:
                        self._answered(text)
            except (OSError, WebSocketException, TimeoutError) as error:
                log.debug("CometBFT's RPC at %s: %s", self._url, error)
            finally:
                self._disconnected()
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)

    async def call(self, method: str, **params: Any) -> Any:
        """The result. Raises Unavailable while there is no connection, Failed with CometBFT's own words."""
        try:
            return await asyncio.wait_for(await self.ask(method, **params), CALL_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable("CometBFT does not answer; try again in a moment", code="engine_unavailable") from None

    async def ask(self, method: str, **params: Any) -> asyncio.Future[Any]:
        """Send a call; the future brings what `call` returns or raises. Raises Unavailable, Exhausted."""
        connection = self._connection
        if connection is None:
            raise Unavailable("CometBFT is not up yet; try again in a moment", code="engine_unavailable")
        if len(self._calls) >= MAX_CALLS:
            raise Exhausted(f"{MAX_CALLS} calls wait for CometBFT already; slow down", code="too_many_calls")
        number = next(self._numbers)
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answered.add_done_callback(lambda _: self._calls.pop(number, None))
        self._calls[number] = answered
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        try:
            await connection.send(json.dumps(request))
        except WebSocketException:
            answered.cancel()
            raise Unavailable("CometBFT went away; try again", code="engine_unavailable") from None
        return answered

    def _answered(self, text: str | bytes) -> None:
        message = json.loads(text)
        waiting = self._calls.get(message.get("id", 0))
        if waiting is None or waiting.done():
            return
        error = message.get("error")
        if error is None:
            waiting.set_result(message["result"])
        else:
            waiting.set_exception(Failed(str(error.get("data") or error.get("message")), code="engine_refused"))

    def _disconnected(self) -> None:
        self._connection = None
        for waiting in list(self._calls.values()):
            if not waiting.done():
                waiting.set_exception(Unavailable("CometBFT went away; try again", code="engine_unavailable"))
