"""Snapshots of a running node: taken beside it every so many blocks, and kept for members that come later."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from talkoo_core.errors import TalkooError
from talkoo_ledger.application import Application, Info
from talkoo_ledger.snapshots import KEEP, Snapshot, SnapshotStore

log = logging.getLogger(__name__)

SNAPSHOTS_FOLDER = "snapshots"


class SnapshotKeeper:
    """`interval_blocks` 0: none are taken. Blocks go on while one is written: it is made of a copy of the entries."""

    def __init__(self, folder: Path, application: Application, interval_blocks: int) -> None:
        self.store = SnapshotStore(folder / SNAPSHOTS_FOLDER, KEEP)
        self._application = application
        self._interval = interval_blocks
        self._writing: asyncio.Task[None] | None = None

    def after_block(self, height: int) -> None:
        """Take one when it is time; a height whose turn comes while the last one is still written is left out."""
        if not self._interval or height % self._interval or self._writing is not None:
            return
        entries = self._application.frozen()
        self._writing = asyncio.create_task(self._write(self._application.info(), entries))

    async def _write(self, info: Info, entries: dict[str, dict[str, bytes]]) -> None:
        try:
            snapshot = await asyncio.to_thread(_written, self.store, info, entries)
            log.info("snapshot of block %d taken: %d chunks", snapshot.height, snapshot.chunks)
        except (OSError, TalkooError) as error:
            # The chain does not need it; a disk that is full stops the node at its next block, with its reason.
            log.warning("no snapshot of block %d: %s", info.height, error)
        finally:
            self._writing = None


def _written(store: SnapshotStore, info: Info, frozen: dict[str, dict[str, bytes]]) -> Snapshot:
    entries = [(module, key, value) for module, values in frozen.items() for key, value in values.items()]
    return store.write(info, entries)
