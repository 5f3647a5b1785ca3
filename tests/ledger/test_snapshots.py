"""Snapshots: equal on every node, checked chunk by chunk, complete or not there."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from talkoo_ledger.application import Application, Info
from talkoo_ledger.snapshots import CHUNK_BYTES, FORMAT, Entry, Restore, Snapshot, SnapshotStore, chunks_of, entries_of

from talkoo_core.errors import Corrupt
from talkoo_sim.ledger_chain import make_genesis


@pytest.fixture
def application() -> Application:
    application = Application()
    application.init_chain(make_genesis())
    return application


def large_entries() -> list[Entry]:
    return [("accounts", f"tlk{number:05d}", bytes([number % 256]) * 700) for number in range(4_000)]


def test_a_snapshot_restores_the_state_with_its_root(application: Application, tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    snapshot = store.take(application)
    restore = Restore(snapshot, application.info().app_hash)
    for index in range(snapshot.chunks):
        chunk = store.chunk(snapshot.height, index)
        assert chunk is not None
        restore.add(index, chunk)
    other = Application()
    other.load(restore.entries(), snapshot.height, snapshot.app_hash)
    assert other.info() == application.info()


def test_the_order_in_which_entries_come_does_not_matter(tmp_path: Path) -> None:
    info = Info(7, b"r" * 32)
    first = SnapshotStore(tmp_path / "a").write(info, large_entries())
    second = SnapshotStore(tmp_path / "b").write(info, large_entries()[::-1])
    assert first == second
    assert first.chunks == 3


def test_chunks_hold_at_most_a_mebibyte_and_read_back() -> None:
    chunks = list(chunks_of(large_entries()))
    assert max(map(len, chunks)) == CHUNK_BYTES
    assert list(entries_of(chunks)) == large_entries()


def test_an_empty_state_is_one_empty_chunk() -> None:
    assert list(chunks_of([])) == [b""]
    assert list(entries_of([b""])) == []


def test_chunks_come_in_any_order_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    snapshot = store.write(Info(7, b"r" * 32), large_entries())
    restore = Restore(snapshot, b"r" * 32)
    chunks = [store.chunk(7, index) or b"" for index in range(3)]
    restore.add(2, chunks[2])
    with pytest.raises(Corrupt, match="chunk 0") as refused:
        restore.add(0, chunks[1])
    assert refused.value.code == "bad_chunk"
    with pytest.raises(Corrupt):
        restore.add(3, chunks[0])
    assert restore.missing() == [0, 1]
    restore.add(0, chunks[0])
    restore.add(1, chunks[1])
    assert restore.complete
    assert list(restore.entries()) == large_entries()


def test_a_chunk_that_is_too_large_is_refused_though_its_hash_fits() -> None:
    chunk = b"x" * (CHUNK_BYTES + 1)
    metadata = b"r" * 32 + hashlib.sha256(chunk).digest()
    restore = Restore(Snapshot(7, FORMAT, 1, hashlib.sha256(metadata).digest(), metadata), b"r" * 32)
    with pytest.raises(Corrupt):
        restore.add(0, chunk)


def test_a_description_that_lies_is_refused(tmp_path: Path) -> None:
    snapshot = SnapshotStore(tmp_path).write(Info(7, b"r" * 32), large_entries())
    lies = {
        "unknown_format": replace(snapshot, format=FORMAT + 1),
        "chunk hashes": replace(snapshot, chunks=4),
        "hash is not that of": replace(snapshot, metadata=snapshot.metadata[:-1] + b"x"),
    }
    for why, lie in lies.items():
        with pytest.raises(Corrupt) as refused:
            Restore(lie, b"r" * 32)
        assert why in f"{refused.value.code} {refused.value}"
    with pytest.raises(Corrupt, match="the chain says"):
        Restore(snapshot, b"x" * 32)


def test_a_stream_that_is_cut_short_is_refused() -> None:
    whole = b"".join(chunks_of(large_entries()[:2]))
    for end in (3, len(whole) - 1):
        with pytest.raises(Corrupt):
            list(entries_of([whole[:end]]))


def test_only_the_newest_are_kept_and_half_written_ones_are_not_there(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, keep=2)
    for height in (5, 10, 15):
        store.write(Info(height, b"r" * 32), large_entries()[:1])
    (tmp_path / ".new-20").mkdir()
    assert [each.height for each in SnapshotStore(tmp_path, keep=2).list()] == [15, 10]
    assert not (tmp_path / ".new-20").exists()
    assert store.chunk(5, 0) is None


def test_a_damaged_description_says_what_to_delete(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    store.write(Info(5, b"r" * 32), [])
    (tmp_path / "5" / "snapshot").write_bytes(b"\xc1")
    with pytest.raises(Corrupt, match="delete that folder"):
        store.list()
