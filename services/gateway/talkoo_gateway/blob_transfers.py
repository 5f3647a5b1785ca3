"""Blobs in and out as streams: through a spool file, so nothing large is in memory and every hash is checked."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from talkoo_api.gateway.v1 import gateway_pb2

from talkoo_core.errors import Corrupt, Exhausted
from talkoo_runtime.blobs import CHUNK_BYTES, MAX_GATEWAY_BLOB_BYTES, BlobStore
from talkoo_runtime.disk import full_disk_is_exhausted

MAX_TRANSFERS = 32
"""At once; with the bound of a blob it also bounds the spool folder."""
SPOOL_FOLDER = "spool"


class BlobTransfers:
    """`state_dir/spool` belongs to it alone: what a crash left there is removed."""

    def __init__(self, store: BlobStore, state_dir: Path) -> None:
        self._store = store
        self._spool = state_dir / SPOOL_FOLDER
        self._running = 0
        shutil.rmtree(self._spool, ignore_errors=True)
        with full_disk_is_exhausted(state_dir):
            self._spool.mkdir(parents=True)

    async def put(self, parts: AsyncIterator[bytes], announced: str = "") -> gateway_pb2.BlobInfo:
        """Store what comes. Raises Exhausted (codes `too_large`, `busy`, or a full disk).

        `announced`: the digest, where the sender has said it; then anything else, such as half of it, is Corrupt.
        """
        async with self._spool_file() as path:
            size = 0
            digest = hashlib.sha256()
            with full_disk_is_exhausted(self._spool), await asyncio.to_thread(path.open, "xb") as file:
                async for part in parts:
                    size += len(part)
                    if size > MAX_GATEWAY_BLOB_BYTES:
                        raise Exhausted(f"a blob has at most {MAX_GATEWAY_BLOB_BYTES >> 20} MiB here", code="too_large")
                    digest.update(part)
                    await asyncio.to_thread(file.write, part)
            if announced not in ("", digest.hexdigest()):
                raise Corrupt(f"the blob {announced[:16]}… did not arrive as it was announced; send it again")
            return gateway_pb2.BlobInfo(sha256=await self._store.put_file(path), size_bytes=size)

    async def stat(self, sha256: str) -> gateway_pb2.BlobInfo:
        """Whether a blob is there, and how large. Raises NotFound."""
        return gateway_pb2.BlobInfo(sha256=sha256, size_bytes=await self._store.size(sha256))

    async def get(self, sha256: str) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob, verified before the first is sent. Raises NotFound, Corrupt or Exhausted."""
        if await self._store.size(sha256) > MAX_GATEWAY_BLOB_BYTES:
            raise Exhausted(f"the blob {sha256[:16]}… has over {MAX_GATEWAY_BLOB_BYTES >> 20} MiB", code="too_large")
        async with self._spool_file() as path:
            await self._store.get_to_file(sha256, path)
            with await asyncio.to_thread(path.open, "rb") as file:
                while part := await asyncio.to_thread(file.read, CHUNK_BYTES):
                    yield part

    @asynccontextmanager
    async def _spool_file(self) -> AsyncIterator[Path]:
        if self._running >= MAX_TRANSFERS:
            raise Exhausted(f"{MAX_TRANSFERS} blobs are on their way here already; try again", code="busy")
        path = self._spool / secrets.token_hex(8)
        self._running += 1
        try:
            yield path
        finally:
            self._running -= 1
            await asyncio.to_thread(path.unlink, missing_ok=True)
