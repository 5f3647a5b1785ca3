"""Content-addressed blobs: one interface; a folder when embedded, S3, or the gateway of another organization.

A name is the SHA-256 of the bytes.

Every read is verified, so the store itself need not be trusted; every write is idempotent.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from talkoo_core.errors import Corrupt, Exhausted, InvalidInput, NotFound, Unavailable
from talkoo_runtime.disk import full_disk_is_exhausted, sync_folder
from talkoo_runtime.service_settings import ServiceSettings

MAX_BLOB_BYTES = 8 * 1024**3
MAX_IN_MEMORY_BYTES = 2 * 1024**3
MAX_GATEWAY_BLOB_BYTES = 256 * 1024**2
"""What a gateway takes and gives, to people and to services of members alike: it bounds its spool folder."""
CHUNK_BYTES = 1 << 20
GATEWAY_SCHEME = "gateway"
SHA256_KEY = "talkoo-blob-sha256"
"""Metadata of a blob on its way to a gateway: whose line breaks has sent half of it, which looks like the end."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore(Protocol):
    """Digests are 64 lower-case hex digits. Errors: NotFound, Corrupt, Exhausted (full or too large), Unavailable."""

    async def put(self, data: bytes) -> str:
        """Store bytes; returns their digest. Storing the same again changes nothing."""
        ...

    async def put_file(self, path: Path) -> str:
        """Store a file without holding it in memory."""
        ...

    async def get(self, digest: str) -> bytes:
        """The bytes, verified. More than `MAX_IN_MEMORY_BYTES` are refused (Exhausted): take `get_to_file`."""
        ...

    async def get_to_file(self, digest: str, path: Path) -> None:
        """Write the verified bytes to a file, which appears only when whole."""
        ...

    async def has(self, digest: str) -> bool: ...

    async def size(self, digest: str) -> int: ...

    async def delete(self, digest: str) -> None:
        """Remove; absent is fine. Raises PermissionDenied where the store is another organization's."""
        ...

    async def close(self) -> None:
        """End the connections, where it has any."""
        ...


def open_blob_store(url: str, settings: ServiceSettings | None = None) -> BlobStore:
    """`file:///folder`, `s3://bucket/prefix?endpoint=http://host:port` with AWS_* credentials in the environment, or
    `gateway://host:port`, which is shown the certificate of `settings`. Nothing is dialled yet.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path and parts.netloc in ("", "localhost"):
        return FolderBlobStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        endpoint = parse_qs(parts.query).get("endpoint", [""])[0]
        return S3BlobStore(endpoint, parts.netloc, parts.path.strip("/"), _credentials_from_environment())
    if parts.scheme == GATEWAY_SCHEME and _is_host_and_port(parts.netloc) and parts.path in ("", "/"):
        if settings is None:
            raise InvalidInput(f"{url} is for services, which show their certificate there", code="bad_settings")
        from talkoo_runtime.gateway_blobs import GatewayBlobStore

        return GatewayBlobStore(parts.netloc, settings)
    raise InvalidInput(
        f"{url!r} names no blob store; use file:///folder, s3://bucket/prefix?endpoint=http://host:port or "
        "gateway://host:port",
        code="bad_settings",
    )


class FolderBlobStore:
    """Blobs as files `ab/cd/<digest>`. Several processes may share a folder: files appear by rename."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, data: bytes) -> str:
        _check_size(len(data))
        digest = hashlib.sha256(data).hexdigest()
        await asyncio.to_thread(self._write, digest, data)
        return digest

    async def put_file(self, path: Path) -> str:
        return await asyncio.to_thread(self._copy_in, path)

    async def get(self, digest: str) -> bytes:
        data = await asyncio.to_thread(self._read, digest)
        verify(digest, hashlib.sha256(data).hexdigest())
        return data

    async def get_to_file(self, digest: str, path: Path) -> None:
        await asyncio.to_thread(self._copy_out, digest, path)

    async def has(self, digest: str) -> bool:
        return await asyncio.to_thread(self._path(digest).is_file)

    async def size(self, digest: str) -> int:
        try:
            return (await asyncio.to_thread(self._path(digest).stat)).st_size
        except FileNotFoundError:
            raise _absent(digest) from None

    async def delete(self, digest: str) -> None:
        await asyncio.to_thread(self._path(digest).unlink, missing_ok=True)

    async def close(self) -> None:
        """Nothing is kept open."""

    def _path(self, digest: str) -> Path:
        check_digest(digest)
        return self._folder / digest[:2] / digest[2:4] / digest

    def _write(self, digest: str, data: bytes) -> None:
        target = self._path(digest)
        if _holds(target, digest):
            return
        beside = self._beside(target)
        with full_disk_is_exhausted(self._folder):
            try:
                with beside.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(target)
            finally:
                beside.unlink(missing_ok=True)
            sync_folder(target.parent)

    def _copy_in(self, source: Path) -> str:
        digest = hashlib.sha256()
        beside = self._beside(self._folder / "incoming")
        with full_disk_is_exhausted(self._folder):
            try:
                with source.open("rb") as reader, beside.open("xb") as writer:
                    _check_size(os.fstat(reader.fileno()).st_size)
                    while chunk := reader.read(CHUNK_BYTES):
                        digest.update(chunk)
                        writer.write(chunk)
                    writer.flush()
                    os.fsync(writer.fileno())
                target = self._path(digest.hexdigest())
                target.parent.mkdir(parents=True, exist_ok=True)
                beside.replace(target)
                sync_folder(target.parent)
            except FileNotFoundError:
                raise NotFound(f"there is no file {source}") from None
            finally:
                beside.unlink(missing_ok=True)
        return digest.hexdigest()

    def _read(self, digest: str) -> bytes:
        try:
            with self._path(digest).open("rb") as file:
                return _read_bounded(file)
        except FileNotFoundError:
            raise _absent(digest) from None

    def _copy_out(self, digest: str, path: Path) -> None:
        try:
            with self._path(digest).open("rb") as reader:
                _write_verified(digest, reader, path)
        except FileNotFoundError:
            raise _absent(digest) from None

    def _beside(self, target: Path) -> Path:
        with full_disk_is_exhausted(self._folder):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target.parent / f".{secrets.token_hex(8)}.part"


class S3BlobStore:
    """Blobs as objects `<prefix>/<digest>`, through the `minio` client in threads."""

    def __init__(self, endpoint: str, bucket: str, prefix: str, credentials: tuple[str, str]) -> None:
        from minio import Minio

        parts = urlsplit(endpoint or "https://s3.amazonaws.com")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidInput(
                f"{endpoint!r} is no S3 endpoint; write it as http://host:port or https://host", code="bad_settings"
            )
        self._client: Any = Minio(
            parts.netloc, access_key=credentials[0], secret_key=credentials[1], secure=parts.scheme == "https"
        )
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    async def make_bucket(self) -> None:
        """Make the bucket unless it is there."""
        if not await self._call(self._client.bucket_exists, self._bucket):
            await self._call(self._client.make_bucket, self._bucket)

    async def put(self, data: bytes) -> str:
        _check_size(len(data))
        digest = hashlib.sha256(data).hexdigest()
        if not await self.has(digest):
            import io

            await self._call(self._client.put_object, self._bucket, self._key(digest), io.BytesIO(data), len(data))
        return digest

    async def put_file(self, path: Path) -> str:
        digest = await asyncio.to_thread(digest_of_file, path)
        if not await self.has(digest):
            await self._call(self._client.fput_object, self._bucket, self._key(digest), str(path))
        return digest

    async def get(self, digest: str) -> bytes:
        data = await self._call(self._read, digest)
        assert isinstance(data, bytes)
        verify(digest, hashlib.sha256(data).hexdigest())
        return data

    async def get_to_file(self, digest: str, path: Path) -> None:
        await self._call(self._copy_out, digest, path)

    async def has(self, digest: str) -> bool:
        try:
            await self.size(digest)
        except NotFound:
            return False
        return True

    async def size(self, digest: str) -> int:
        return int((await self._call(self._client.stat_object, self._bucket, self._key(digest))).size)

    async def delete(self, digest: str) -> None:
        await self._call(self._client.remove_object, self._bucket, self._key(digest))

    async def close(self) -> None:
        """The client's own pool drops idle connections."""

    def _key(self, digest: str) -> str:
        check_digest(digest)
        return self._prefix + digest

    def _read(self, digest: str) -> bytes:
        answer = self._client.get_object(self._bucket, self._key(digest))
        try:
            return _read_bounded(answer)
        finally:
            answer.close()
            answer.release_conn()

    def _copy_out(self, digest: str, path: Path) -> None:
        answer = self._client.get_object(self._bucket, self._key(digest))
        try:
            _write_verified(digest, answer, path)
        finally:
            answer.close()
            answer.release_conn()

    async def _call(self, function: Any, *arguments: Any) -> Any:
        from minio.error import S3Error
        from urllib3.exceptions import HTTPError

        try:
            return await asyncio.to_thread(function, *arguments)
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                raise NotFound("the blob is not in the store", code="no_blob") from None
            raise Unavailable(f"the S3 store refused: {error.code}: {error.message}", code="s3") from error
        except HTTPError as error:
            raise Unavailable(f"the S3 store cannot be reached: {error}", code="s3") from error


def _read_bounded(reader: Any) -> bytes:
    """Somebody else may have stored it: its size is not to be trusted."""
    data = bytes(reader.read(MAX_IN_MEMORY_BYTES + 1))
    check_in_memory(len(data))
    return data


def check_in_memory(size: int) -> None:
    """Raises Exhausted for what is too large to be held in memory."""
    if size > MAX_IN_MEMORY_BYTES:
        raise Exhausted(f"a blob over {MAX_IN_MEMORY_BYTES} bytes is not read into memory; read it into a file")


def _write_verified(digest: str, reader: Any, path: Path) -> None:
    """Copy a stream beside `path`, check its hash, then rename."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    actual = hashlib.sha256()
    with full_disk_is_exhausted(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("xb") as writer:
                while chunk := reader.read(CHUNK_BYTES):
                    actual.update(chunk)
                    writer.write(chunk)
            verify(digest, actual.hexdigest())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def _holds(path: Path, digest: str) -> bool:
    """Whether a blob is there and whole: one that was damaged on the disk is written anew."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return False


def digest_of_file(path: Path) -> str:
    """Raises NotFound, or Exhausted for a file that no store takes."""
    try:
        _check_size(path.stat().st_size)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None


def check_digest(digest: str) -> None:
    """Raises InvalidInput (code `bad_digest`)."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput(f"{digest[:80]!r} is not a SHA-256: 64 lower-case hex digits", code="bad_digest")


def _check_size(size: int) -> None:
    if size > MAX_BLOB_BYTES:
        raise Exhausted(f"a blob has at most {MAX_BLOB_BYTES >> 30} GiB, this one {size} bytes; split it")


def verify(wanted: str, actual: str) -> None:
    """Raises Corrupt."""
    if wanted != actual:
        raise Corrupt(f"the blob {wanted[:16]}… is damaged in the store: its bytes hash to {actual[:16]}…")


def _absent(digest: str) -> NotFound:
    return NotFound(f"the blob {digest[:16]}… is not in the store", code="no_blob")


def _is_host_and_port(netloc: str) -> bool:
    host, _, port = netloc.rpartition(":")
    return bool(host) and "@" not in host and port.isdigit()


def _credentials_from_environment() -> tuple[str, str]:
    try:
        return os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    except KeyError as error:
        raise InvalidInput(f"an S3 store needs {error.args[0]} in the environment", code="bad_settings") from None
