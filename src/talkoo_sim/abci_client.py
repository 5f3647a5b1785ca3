"""An engine's end of an ABCI socket, as CometBFT speaks on it, for tests of the ledger's end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from talkoo_api.abci.v1 import abci_pb2


class AbciClient:
    """One connection to an ABCI socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, path: Path) -> AbciClient:
        return cls(*await asyncio.open_unix_connection(str(path)))

    def send(self, **request: Any) -> None:
        raw = abci_pb2.Request(**request).SerializeToString()
        self.writer.write(varint(len(raw)) + raw)

    async def read(self) -> abci_pb2.Response:
        length = shift = 0
        while True:
            (byte,) = await self.reader.readexactly(1)
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                return abci_pb2.Response.FromString(await self.reader.readexactly(length))
            shift += 7

    async def ask(self, **request: Any) -> abci_pb2.Response:
        self.send(**request)
        return await self.read()


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])
