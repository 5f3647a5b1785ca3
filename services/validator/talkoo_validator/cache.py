"""Blobs on the local disk, bounded by bytes, each verified whenever it is used."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from talkoo_core.errors import Corrupt, NotFound
from talkoo_runtime.blobs import BlobStore

FETCH_ATTEMPTS = 3
FETCH_PAUSE_S = 1.0
"""Before the second attempt; doubled for each further one."""
READ_BYTES = 1 << 20


class BlobCache:
    """Files named by SHA-256 in one folder; the least recently used go when the bound is passed."""

    def __init__(self, store: BlobStore, folder: Path, max_bytes: int, pause_s: float = FETCH_PAUSE_S) -> None:
        self._store = store
        self._folder = folder
        self._max_bytes = max_bytes
        self._pause_s = pause_s
        folder.mkdir(parents=True, exist_ok=True)

    async def fetch(self, digests: Iterable[str]) -> dict[str, Path]:
        """Verified files of all these blobs. Raises NotFound or Corrupt naming the first that cannot be had.

        A blob that is absent or does not fit its hash is asked for `FETCH_ATTEMPTS` times, in case it is on its way.
        Unavailable and Exhausted (our own store, our own disk) are passed on at once.
        """
        wanted = list(dict.fromkeys(digests))
        paths = {digest: await self._one(digest) for digest in wanted}
        await asyncio.to_thread(self._shrink, set(wanted))
        return paths

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

    def _shrink(self, kept: set[str]) -> None:
        """Drop least recently used files until the bound holds; `kept` stay."""
        files = sorted((path for path in self._folder.iterdir() if path.is_file()), key=lambda path: _used_at(path))
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total <= self._max_bytes:
                return
            if path.name not in kept:
                total -= path.stat().st_size
                path.unlink()


def _used_at(path: Path) -> float:
    return path.stat().st_mtime


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
        path.unlink()
        return False
    os.utime(path)
    return True
