"""Snapshots of the committed state: the same bytes on every node at a height, in chunks that are checked one by one.

A snapshot is one stream of entries, sorted by (module, key), each `>HHI` lengths, then module, key and value; it is cut
into chunks of 1 MiB. `metadata` = app hash ‖ SHA-256 of each chunk, and `hash` = SHA-256(metadata). So whoever has the
metadata finds a wrong chunk at once; that the entries have the root that a verified header names is checked when they
are loaded (`Application.load`).

On disk: one folder per snapshot, named by its height, that appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from talkoo_core.errors import Corrupt
from talkoo_ledger.application import Application, Info
from talkoo_runtime.disk import full_disk_is_exhausted, sync_folder, write_atomic

FORMAT = 1
CHUNK_BYTES = 1024 * 1024
MAX_CHUNKS = 4_096
"""4 GiB: nodes hold their state, and a snapshot that arrives, in memory."""
HASH_BYTES = 32
KEEP = 2

_LENGTHS = struct.Struct(">HHI")
_DESCRIPTION = "snapshot"

Entry = tuple[str, str, bytes]
"""(module, key, value)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a node says of a snapshot it has."""

    height: int
    format: int
    chunks: int
    hash: bytes
    metadata: bytes

    @property
    def app_hash(self) -> bytes:
        """Of the state after block `height`, as the snapshot claims; it stands in header `height + 1`."""
        return self.metadata[:HASH_BYTES]

    def chunk_hash(self, index: int) -> bytes:
        return self.metadata[HASH_BYTES * (index + 1) : HASH_BYTES * (index + 2)]


def chunks_of(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The stream of the sorted entries, cut into chunks. An empty state is one empty chunk."""
    buffer = bytearray()
    sent = False
    for module, key, value in sorted(entries):
        names = module.encode(), key.encode()
        buffer += _LENGTHS.pack(len(names[0]), len(names[1]), len(value)) + names[0] + names[1] + value
        while len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer[:CHUNK_BYTES])
            sent = True
            del buffer[:CHUNK_BYTES]
    if buffer or not sent:
        yield bytes(buffer)


def entries_of(chunks: Sequence[bytes]) -> Iterator[Entry]:
    """Read the stream again. Raises Corrupt (`bad_snapshot`) where it is cut short or is no text."""
    stream = memoryview(b"".join(chunks))
    place = 0
    try:
        while place < len(stream):
            module, key, value = _LENGTHS.unpack_from(stream, place)
            place += _LENGTHS.size
            end = place + module + key + value
            if end > len(stream):
                raise _bad("it ends in the middle of an entry")
            yield (
                str(stream[place : place + module], "utf-8"),
                str(stream[place + module : place + module + key], "utf-8"),
                bytes(stream[place + module + key : end]),
            )
            place = end
    except (struct.error, UnicodeDecodeError) as error:
        raise _bad(str(error)) from None


class SnapshotStore:
    """The newest `keep` snapshots of this node, below a folder. Raises Exhausted when the disk is full."""

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        self._folder = folder
        self._keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".new-*"):
            shutil.rmtree(unfinished)

    def take(self, application: Application) -> Snapshot:
        """Write the committed state, and forget the oldest snapshots. Blocks for as long as writing takes."""
        return self.write(application.info(), list(application.snapshot()))

    def write(self, info: Info, entries: Sequence[Entry]) -> Snapshot:
        """As `take`, of entries that were read before: it may run beside the application, in a thread."""
        final, fresh = self._folder / str(info.height), self._folder / f".new-{info.height}"
        known = self._read(final)
        if known is not None:
            return known
        hashes = []
        with full_disk_is_exhausted(fresh):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            for index, chunk in enumerate(chunks_of(entries)):
                write_atomic(fresh / f"{index:06d}", chunk)
                hashes.append(hashlib.sha256(chunk).digest())
        metadata = info.app_hash + b"".join(hashes)
        assert len(hashes) <= MAX_CHUNKS, f"a state of {len(hashes)} MiB does not fit a snapshot"
        snapshot = Snapshot(info.height, FORMAT, len(hashes), hashlib.sha256(metadata).digest(), metadata)
        write_atomic(fresh / _DESCRIPTION, msgspec.msgpack.encode(snapshot))
        fresh.rename(final)
        sync_folder(self._folder)
        for old in self.list()[self._keep :]:
            shutil.rmtree(self._folder / str(old.height))
        return snapshot

    def list(self) -> list[Snapshot]:
        """Complete snapshots, newest first."""
        found = (self._read(path) for path in self._folder.iterdir() if path.name.isdecimal())
        return sorted((each for each in found if each is not None), key=lambda each: -each.height)

    def chunk(self, height: int, index: int) -> bytes | None:
        """None when this node does not have it (any more)."""
        try:
            return (self._folder / str(height) / f"{index:06d}").read_bytes()
        except FileNotFoundError:
            return None

    def _read(self, path: Path) -> Snapshot | None:
        try:
            return msgspec.msgpack.decode((path / _DESCRIPTION).read_bytes(), type=Snapshot)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corrupt(f"{path} is damaged ({error}); delete that folder, a new snapshot follows") from None


class Restore:
    """Collects the chunks of a snapshot, in any order. `app_hash` comes from a verified header, not from the peer.

    Raises Corrupt: `bad_snapshot` where the description contradicts itself or the app hash, `unknown_format`.
    """

    def __init__(self, snapshot: Snapshot, app_hash: bytes) -> None:
        if snapshot.format != FORMAT:
            raise Corrupt(
                f"a snapshot of format {snapshot.format}; this node reads format {FORMAT}", code="unknown_format"
            )
        if not 0 < snapshot.chunks <= MAX_CHUNKS or len(snapshot.metadata) != HASH_BYTES * (snapshot.chunks + 1):
            raise _bad(f"it has no {snapshot.chunks} chunk hashes")
        if snapshot.hash != hashlib.sha256(snapshot.metadata).digest():
            raise _bad("its hash is not that of its metadata")
        if snapshot.app_hash != app_hash:
            raise _bad(f"it is of the state {snapshot.app_hash.hex()[:16]}, the chain says {app_hash.hex()[:16]}")
        self.snapshot = snapshot
        self._chunks: dict[int, bytes] = {}

    def add(self, index: int, chunk: bytes) -> None:
        """Raises Corrupt (`bad_chunk`): ask another peer for it."""
        fits = 0 <= index < self.snapshot.chunks and len(chunk) <= CHUNK_BYTES
        if not fits or hashlib.sha256(chunk).digest() != self.snapshot.chunk_hash(index):
            raise Corrupt(
                f"chunk {index} of the snapshot of block {self.snapshot.height} is not what its hash says; "
                "fetch it from another peer",
                code="bad_chunk",
            )
        self._chunks[index] = chunk

    @property
    def complete(self) -> bool:
        return len(self._chunks) == self.snapshot.chunks

    def missing(self) -> list[int]:
        return [index for index in range(self.snapshot.chunks) if index not in self._chunks]

    def entries(self) -> Iterator[Entry]:
        """Of a complete snapshot. Raises Corrupt (`bad_snapshot`)."""
        assert self.complete, f"chunks {self.missing()[:5]} are missing"
        return entries_of([self._chunks[index] for index in range(self.snapshot.chunks)])


def _bad(why: str) -> Corrupt:
    return Corrupt(f"the snapshot is wrong: {why}; fetch another", code="bad_snapshot")
