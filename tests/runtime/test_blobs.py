"""One suite over all stores: what holds for a folder holds for S3, and for a folder behind a gateway."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from talkoo_core.errors import Corrupt, Exhausted, InvalidInput, NotFound, PermissionDenied, Unavailable
from talkoo_runtime import blobs
from talkoo_runtime.blobs import BlobStore, FolderBlobStore, S3BlobStore, open_blob_store
from talkoo_runtime.gateway_blobs import GatewayBlobStore

ABSENT = "ab" * 32


@pytest.fixture(params=["folder", "s3", "gateway"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "folder":
        yield FolderBlobStore(tmp_path / "blobs")
    elif request.param == "gateway":
        yield request.getfixturevalue("gateway_store")
    else:
        endpoint = request.getfixturevalue("s3_server")
        yield S3BlobStore(endpoint, "blobs", request.node.name, ("tester", "tester-secret"))


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 8192])
async def test_bytes_come_back_under_their_digest(store: BlobStore, data: bytes) -> None:
    digest = await store.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert await store.get(digest) == data
    assert await store.size(digest) == len(data)


async def test_putting_twice_changes_nothing(store: BlobStore) -> None:
    assert await store.put(b"same") == await store.put(b"same")
    assert await store.get(await store.put(b"same")) == b"same"


async def test_files_go_in_and_come_out_whole(store: BlobStore, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "deep" / "out"
    source.write_bytes(b"0123456789" * 300_000)
    digest = await store.put_file(source)
    await store.get_to_file(digest, target)
    assert target.read_bytes() == source.read_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["out"]


async def test_an_absent_blob_is_not_found(store: BlobStore, tmp_path: Path) -> None:
    assert not await store.has(ABSENT)
    for ask in (store.get(ABSENT), store.size(ABSENT), store.get_to_file(ABSENT, tmp_path / "x")):
        with pytest.raises(NotFound):
            await ask
    assert not (tmp_path / "x").exists()
    with pytest.raises(NotFound):
        await store.put_file(tmp_path / "no such file")


async def test_a_deleted_blob_is_gone_and_deleting_again_is_fine(store: BlobStore) -> None:
    digest = await store.put(b"short-lived")
    if isinstance(store, GatewayBlobStore):
        with pytest.raises(PermissionDenied, match="ask its organization"):
            await store.delete(digest)
        assert await store.has(digest)
        return
    await store.delete(digest)
    await store.delete(digest)
    assert not await store.has(digest)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "AB" * 32, "zz" * 32, "ab" * 31])
async def test_a_name_that_is_no_digest_is_refused(store: BlobStore, digest: str) -> None:
    with pytest.raises(InvalidInput, match="not a SHA-256"):
        await store.get(digest)


async def test_damage_in_a_folder_is_found_on_read(tmp_path: Path) -> None:
    store = FolderBlobStore(tmp_path / "blobs")
    digest = await store.put(b"precious")
    next(p for p in (tmp_path / "blobs").rglob(digest)).write_bytes(b"precioos")
    with pytest.raises(Corrupt, match="damaged"):
        await store.get(digest)
    with pytest.raises(Corrupt, match="damaged"):
        await store.get_to_file(digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_damage_is_mended_by_putting_again(tmp_path: Path) -> None:
    store = FolderBlobStore(tmp_path / "blobs")
    digest = await store.put(b"precious")
    next(p for p in (tmp_path / "blobs").rglob(digest)).write_bytes(b"precioos")
    await store.put(b"precious")
    assert await store.get(digest) == b"precious"


async def test_a_blob_that_would_fill_the_memory_is_refused(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await store.put(b"x" * 1001)
    monkeypatch.setattr(blobs, "MAX_IN_MEMORY_BYTES", 1000)
    with pytest.raises(Exhausted, match="into a file"):
        await store.get(digest)
    await store.get_to_file(digest, tmp_path / "out")
    assert (tmp_path / "out").stat().st_size == 1001
    assert len(await store.get(await store.put(b"y" * 1000))) == 1000


async def test_a_folder_with_a_blank_in_its_name_is_that_folder(tmp_path: Path) -> None:
    await open_blob_store((tmp_path / "my blobs").as_uri()).put(b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["my blobs"]


async def test_a_full_disk_is_exhausted_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = FolderBlobStore(tmp_path / "blobs")
    kept = await store.put(b"kept")
    monkeypatch.setattr(blobs.os, "fsync", no_space)
    with pytest.raises(Exhausted, match="full"):
        await store.put(b"too much")
    monkeypatch.undo()
    assert await store.get(kept) == b"kept"
    assert not list((tmp_path / "blobs").rglob("*.part"))


async def test_an_unreachable_s3_server_is_unavailable() -> None:
    from urllib3 import Retry

    store = S3BlobStore("http://127.0.0.1:9", "blobs", "", ("a", "b"))
    store._client._http.connection_pool_kw["retries"] = Retry(0)
    with pytest.raises(Unavailable, match="cannot be reached"):
        await store.get(ABSENT)


def test_a_store_is_opened_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_blob_store(tmp_path.as_uri()), FolderBlobStore)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert isinstance(open_blob_store("s3://bucket/prefix?endpoint=http://127.0.0.1:1"), S3BlobStore)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InvalidInput, match="AWS_SECRET_ACCESS_KEY"):
        open_blob_store("s3://bucket")
    for wrong in ("ftp://x/y", "file://relative/folder", "blobs", "gateway://host", "gateway://host:1/prefix"):
        with pytest.raises(InvalidInput, match="no blob store"):
            open_blob_store(wrong)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(InvalidInput, match="http://host:port"):
        open_blob_store("s3://bucket?endpoint=host:8333")
