"""Blobs on the local disk, bounded by bytes, each verified whenever it is used."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from talkoo_core.errors import Corrupt, NotFound
from talkoo_runtime.blobs import BlobStore

FETCH_ATTEMPTS = 3
FETCH_PAUSE_S = 1.0
"""Before the second attempt; doubled for each further one."""
READ_BYTES = 1 << 20


class BlobCache:
    """Files named by SHA-256 in one folder; the least recently used go when the bound is passed.

    Several audits share it: what any of them holds stays, whatever the bound.
    """

    def __init__(self, store: BlobStore, folder: Path, max_bytes: int, pause_s: float = FETCH_PAUSE_S) -> None:
        self._store = store
        self._folder = folder
        self._max_bytes = max_bytes
        self._pause_s = pause_s
        self._held: Counter[str] = Counter()
        self._changing = asyncio.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".*.part"):  # of a process that was killed
            unfinished.unlink()

    @asynccontextmanager
    async def hold(self, digests: Iterable[str]) -> AsyncIterator[dict[str, Path]]:
        """Verified files of all these blobs, which stay until the block is left.

        Raises NotFound or Corrupt naming the first that cannot be had. A blob that is absent or does not fit its hash
        is asked for `FETCH_ATTEMPTS` times, in case it is on its way. Unavailable and Exhausted (our own store, our
        own disk) are passed on at once.
        """
        wanted = list(dict.fromkeys(digests))
        async with self._changing:  # nothing is dropped between being held and being looked for
            self._held.update(wanted)
        try:
            paths = {digest: await self._one(digest) for digest in wanted}
            await self._tidy()
            yield paths
        finally:
            self._held.subtract(wanted)
            self._held = +self._held
            await self._tidy()

    def size_bytes(self) -> int:
        """Of all finished files."""
        return sum(size for _, size, _ in self._files())

    def _files(self) -> list[tuple[Path, int, int]]:
        """Path, size and time of last use of each; what goes meanwhile is not counted."""
        found = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if not path.name.startswith("."):
                    state = path.stat()
                    found.append((path, state.st_size, state.st_mtime_ns))
        return found

    async def _one(self, digest: str) -> Path:
        path = self._folder / digest
        if await asyncio.to_thread(_fits, path, digest):
            return path
        pause = self._pause_s
        for attempt in range(1, FETCH_ATTEMPTS + 1):
            try:
                await self._store.get_to_file(digest, path)
                return path
            except (NotFound, Corrupt):
                if attempt == FETCH_ATTEMPTS:
                    raise
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    async def _tidy(self) -> None:
        async with self._changing:
            await asyncio.to_thread(self._shrink, frozenset(self._held))

    def _shrink(self, held: frozenset[str]) -> None:
        """Drop least recently used blobs until the bound holds. Another audit's unfinished file is left to it."""
        blobs = self._files()
        total = sum(size for _, size, _ in blobs)
        for path, size, _ in sorted(blobs, key=lambda blob: blob[2]):
            if total <= self._max_bytes:
                return
            if path.name not in held:
                total -= size
                path.unlink()


def _fits(path: Path, digest: str) -> bool:
    """Whether the cached file is there and still has its hash; it then counts as used now."""
    state = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                state.update(chunk)
    except FileNotFoundError:
        return False
    if state.hexdigest() != digest:
        return False
    os.utime(path)
    return True
