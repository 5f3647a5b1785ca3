"""Blobs of another organization's store, over its gateway: for a cluster whose services can only dial out.

What is a blob, and how it is verified, is `talkoo_runtime.blobs`'s matter; the connection is this module's.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from talkoo_api.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from talkoo_core.errors import Corrupt, Exhausted, NotFound, PermissionDenied, TalkooError, Unavailable
from talkoo_runtime import blobs
from talkoo_runtime.blobs import CHUNK_BYTES, MAX_GATEWAY_BLOB_BYTES, SHA256_KEY
from talkoo_runtime.disk import full_disk_is_exhausted
from talkoo_runtime.grpc_client import answer_of, drop_closed_channels, error_from_rpc, service_channel
from talkoo_runtime.service_settings import ServiceSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

STAT_TIMEOUT_S = 15.0
TRANSFER_TIMEOUT_S = 900.0
"""256 MiB over a line of 2.5 Mbit/s. A line that is dead is noticed by keep-alive, in 15 s."""
UNREACHABLE_PATIENCE_S = 20.0
"""A gateway that cannot be reached is dialled again for so long before a call fails."""
BUSY_PATIENCE_S = 120.0
"""A gateway that has too many blobs on their way is asked again for so long."""
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 5.0


class GatewayBlobStore:
    """A `BlobStore` behind `PutBlob`, `GetBlob` and `StatBlob`, at most `MAX_GATEWAY_BLOB_BYTES` for a blob.

    The channel is opened at the first call, and anew with the certificates of that moment when it was lost. A call that
    broke is made again while the patience lasts: making it twice changes nothing.
    """

    def __init__(
        self,
        target: str,
        settings: ServiceSettings,
        *,
        unreachable_patience_s: float = UNREACHABLE_PATIENCE_S,
        busy_patience_s: float = BUSY_PATIENCE_S,
    ) -> None:
        """`target`: host:port of the gateway. `settings`: whose certificate is shown."""
        self._target = target
        self._settings = settings
        self._patience_s = {"unreachable": unreachable_patience_s, "busy": busy_patience_s}
        self._channel: grpc.aio.Channel | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        await self._upload(digest, len(data), lambda: io.BytesIO(data))
        return digest

    async def put_file(self, path: Path) -> str:
        digest = await asyncio.to_thread(blobs.digest_of_file, path)
        await self._upload(digest, (await asyncio.to_thread(path.stat)).st_size, lambda: path.open("rb"))
        return digest

    async def get(self, digest: str) -> bytes:
        return await self._again(lambda: self._read(digest))

    async def get_to_file(self, digest: str, path: Path) -> None:
        await self._again(lambda: self._copy_out(digest, path))

    async def has(self, digest: str) -> bool:
        try:
            await self.size(digest)
        except NotFound:
            return False
        return True

    async def size(self, digest: str) -> int:
        request = _asked(digest)
        info = await self._again(lambda: self._stub().StatBlob(request, timeout=STAT_TIMEOUT_S))
        return int(info.size_bytes)

    async def delete(self, digest: str) -> None:
        """Raises PermissionDenied (code `not_ours`): others may count on a blob that is in their store."""
        raise PermissionDenied(
            f"the blob {digest[:16]}… lies in the store behind the gateway {self._target}, which does not delete for "
            "others; ask its organization to delete it there",
            code="not_ours",
        )

    async def close(self) -> None:
        closing, channel, self._channel = list(self._closing), self._channel, None
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        if channel is not None:
            await channel.close()

    async def _upload(self, digest: str, size: int, open_reader: Callable[[], Any]) -> None:
        """Send what is not there yet. Raises Exhausted (code `too_large`) before a byte is sent."""
        if size > MAX_GATEWAY_BLOB_BYTES:
            raise Exhausted(
                f"a blob over a gateway has at most {MAX_GATEWAY_BLOB_BYTES >> 20} MiB, this one {size} bytes; use a "
                "store of your own for larger ones",
                code="too_large",
            )
        if await self.has(digest):
            return

        announced = ((SHA256_KEY, digest),)

        async def send() -> gateway_pb2.BlobInfo:
            with await asyncio.to_thread(open_reader) as reader:
                call = self._stub().PutBlob(_chunks(reader), timeout=TRANSFER_TIMEOUT_S, metadata=announced)
                info: gateway_pb2.BlobInfo = await answer_of(call)
            return info

        if (info := await self._again(send)).sha256 != digest:
            raise Corrupt(f"the gateway {self._target} stored {info.sha256[:16]}… instead of {digest[:16]}…")

    async def _read(self, digest: str) -> bytes:
        data = bytearray()
        async for part in self._download(digest):
            data += part
            blobs.check_in_memory(len(data))
        blobs.verify(digest, hashlib.sha256(data).hexdigest())
        return bytes(data)

    async def _copy_out(self, digest: str, path: Path) -> None:
        """Write beside `path`, check the hash, then rename."""
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        actual = hashlib.sha256()
        parts = self._download(digest)
        try:
            with full_disk_is_exhausted(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with await asyncio.to_thread(beside.open, "xb") as writer:
                    async for part in parts:
                        actual.update(part)
                        await asyncio.to_thread(writer.write, part)
                blobs.verify(digest, actual.hexdigest())
                beside.replace(path)
        finally:
            await parts.aclose()
            await asyncio.to_thread(beside.unlink, missing_ok=True)

    async def _download(self, digest: str) -> AsyncGenerator[bytes, None]:
        """The parts as they come. Raises Corrupt for more than a blob may have: the gateway is not trusted."""
        call = self._stub().GetBlob(_asked(digest), timeout=TRANSFER_TIMEOUT_S)
        size = 0
        try:
            async for chunk in call:
                size += len(chunk.data)
                if size > MAX_GATEWAY_BLOB_BYTES:
                    raise Corrupt(f"the gateway {self._target} sent too many bytes for the blob {digest[:16]}…")
                yield chunk.data
        finally:
            call.cancel()

    def _stub(self) -> Any:
        if self._channel is None:
            self._channel = service_channel(self._settings, self._target)
        return gateway_pb2_grpc.GatewayStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call until it succeeds, fails for good, or the patience with its trouble has ended."""
        now = asyncio.get_running_loop().time
        began, pause_s = now(), RETRY_FIRST_S
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                trouble = self._trouble(error)
                if now() - began + pause_s > self._patience_s.get(trouble.code, 0.0):
                    raise trouble from error
            log.info("%s; again in %.1f s", trouble.message, pause_s)
            drop_closed_channels()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)

    def _trouble(self, error: grpc.aio.AioRpcError) -> TalkooError:
        """What a failed call means; a channel that was lost is given up."""
        known = error_from_rpc(error)
        if known.code != "unreachable":
            return known
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            self._give_up()
        return Unavailable(f"the gateway {self._target} cannot be reached: {known.message}", code=known.code)

    def _give_up(self) -> None:
        """The next call opens another channel. Transfers that still go on over this one may end."""
        channel, self._channel = self._channel, None
        if channel is not None:
            closing = asyncio.create_task(channel.close(TRANSFER_TIMEOUT_S))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def _asked(digest: str) -> gateway_pb2.GetBlobRequest:
    blobs.check_digest(digest)
    return gateway_pb2.GetBlobRequest(sha256=digest)


async def _chunks(reader: Any) -> AsyncIterator[gateway_pb2.BlobChunk]:
    while data := await asyncio.to_thread(reader.read, CHUNK_BYTES):
        yield gateway_pb2.BlobChunk(data=data)
