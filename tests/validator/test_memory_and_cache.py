"""What survives a crash, and the bounded cache of blobs."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
import pytest
from talkoo_validator.cache import BlobCache
from talkoo_validator.memory import MAX_REMEMBERED, AuditRecord, Memory

from talkoo_core.errors import Corrupt, NotFound
from talkoo_runtime.blobs import FolderBlobStore


def test_memory_gives_back_what_was_saved_before_it_was_closed(tmp_path: Path) -> None:
    record = AuditRecord("task-1", 1, 2, "committed", "honest", b"verdict", b"s" * 32, 1, 40, 7)
    memory = Memory(tmp_path / "audits.db")
    memory.save(record)
    memory.save_height(12)
    memory.close()
    again = Memory(tmp_path / "audits.db")
    assert (again.get(record.key), again.height(), again.get(("task-1", 1, 3))) == (record, 12, None)
    again.close()


def test_memory_forgets_the_oldest_finished_audits_and_never_an_open_one(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "audits.db")
    memory.save(AuditRecord("task-0", 1, 0, state="committed", time_ns=0))
    for number in range(MAX_REMEMBERED + 5):
        memory.save(AuditRecord("task-1", 1, number, state="revealed", time_ns=number + 1))
    kept = memory.all()
    assert kept[0].task_id == "task-0"
    assert len(kept) == MAX_REMEMBERED + 1
    assert msgspec.structs.replace(kept[-1], segment=0).task_id == "task-1"
    memory.close()


@pytest.fixture
def store(tmp_path: Path) -> FolderBlobStore:
    return FolderBlobStore(tmp_path / "store")


async def test_cache_serves_without_the_store_and_mends_a_damaged_file(store: FolderBlobStore, tmp_path: Path) -> None:
    digest = await store.put(b"weights")
    cache = BlobCache(store, tmp_path / "cache", max_bytes=100)
    async with cache.hold([digest]) as paths:
        paths[digest].write_bytes(b"damaged")
    async with cache.hold([digest]) as paths:
        assert paths[digest].read_bytes() == b"weights"
    await store.delete(digest)
    async with cache.hold([digest]) as paths:
        assert paths[digest].read_bytes() == b"weights"


async def test_cache_drops_the_least_recently_used_beyond_its_bound(store: FolderBlobStore, tmp_path: Path) -> None:
    digests = [await store.put(bytes([number]) * 40) for number in range(4)]
    cache = BlobCache(store, tmp_path / "cache", max_bytes=100)
    for digest in digests:
        async with cache.hold([digest]):
            pass
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(kept) == 2
    assert digests[-1] in kept


async def test_what_an_audit_holds_stays_whatever_the_bound(store: FolderBlobStore, tmp_path: Path) -> None:
    digests = [await store.put(bytes([number]) * 40) for number in range(6)]
    cache = BlobCache(store, tmp_path / "cache", max_bytes=100)
    async with cache.hold(digests[:4]) as first:
        async with cache.hold(digests[3:]):
            pass
        assert all(path.is_file() for path in first.values())
    assert len(list((tmp_path / "cache").iterdir())) == 2


async def test_audits_at_the_same_time_do_not_take_each_others_files(store: FolderBlobStore, tmp_path: Path) -> None:
    """A file that another audit is writing, or has just dropped, is nobody else's fault."""
    digests = [await store.put(bytes([number]) * 4000) for number in range(12)]
    cache = BlobCache(store, tmp_path / "cache", max_bytes=9000)

    async def audit(number: int) -> None:
        for turn in range(10):
            needed = [digests[(number + turn + step) % 12] for step in range(3)]
            async with cache.hold(needed) as paths:
                for digest, path in paths.items():
                    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest

    await asyncio.gather(*map(audit, range(8)))
    assert len(list((tmp_path / "cache").iterdir())) == 2


async def test_what_a_killed_process_left_half_written_is_removed(store: FolderBlobStore, tmp_path: Path) -> None:
    left = tmp_path / "cache" / f".{'ab' * 32}.c57793be.part"
    left.parent.mkdir()
    left.write_bytes(b"half")
    BlobCache(store, tmp_path / "cache", max_bytes=100)
    assert not left.exists()


async def test_a_missing_blob_and_a_wrong_one_are_told_after_bounded_attempts(
    store: FolderBlobStore, tmp_path: Path
) -> None:
    digest = await store.put(b"weights")
    cache = BlobCache(store, tmp_path / "cache", max_bytes=100, pause_s=0.001)
    with pytest.raises(NotFound):
        await cache.hold(["ab" * 32]).__aenter__()
    (tmp_path / "store" / digest[:2] / digest[2:4] / digest).write_bytes(b"other")
    with pytest.raises(Corrupt):
        await cache.hold([digest]).__aenter__()
