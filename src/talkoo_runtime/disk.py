"""Writing files so that a crash leaves the old content or the new, never half of it."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from talkoo_core.errors import Exhausted, Internal

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_is_exhausted(path: Path) -> Iterator[None]:
    """Turns "no space left" into our Exhausted (code `disk_full`); other I/O errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise Exhausted(f"the disk with {path} is full; free some space, nothing was lost", code="disk_full") from error


@contextmanager
def failed_disk_is_told(path: Path) -> Iterator[None]:
    """As `full_disk_is_exhausted`, and any other I/O error becomes Internal (code `disk_failed`)."""
    try:
        with full_disk_is_exhausted(path):
            yield
    except OSError as error:
        raise Internal(
            f"{path} cannot be written or read: {error.strerror or error}; check the disk and start again, nothing "
            "was said that could be forgotten",
            code="disk_failed",
        ) from error


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write beside, fsync, rename, fsync the folder. Raises Exhausted when the disk is full."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with full_disk_is_exhausted(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Disk(Protocol):
    """One folder of files, as a log needs it. What was written counts as kept once `sync` of the file has returned.

    Names are plain file names. Every method may raise Exhausted (code `disk_full`) and Internal (code `disk_failed`);
    after either nothing is known of what was not synced, and whoever needs it must stop.
    """

    def names(self) -> list[str]:
        """All files."""

    def read(self, name: str) -> bytes | None:
        """A file's content, None where there is none."""

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        """Write all of it; a file that is not there is made."""

    def truncate(self, name: str, size: int) -> None:
        """Cut a file off, durably."""

    def sync(self, name: str) -> None:
        """What was written to the file is durable; so is its name after `sync_names`."""

    def replace(self, name: str, content: bytes) -> None:
        """All of the content or none of it, durably, whatever the file held before."""

    def remove(self, name: str) -> None:
        """Not durable before `sync_names`; that a removed file comes back must do no harm."""

    def sync_names(self) -> None:
        """Files made and removed so far stay so."""

    def path(self, name: str) -> str:
        """For messages."""

    def close(self) -> None:
        """Let go of open files."""


class FolderDisk:
    """`Disk` over a real folder, which is made. Files stay open until they are removed or replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, int] = {}
        with failed_disk_is_told(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        with failed_disk_is_told(self._folder):
            return sorted(path.name for path in self._folder.iterdir())

    def read(self, name: str) -> bytes | None:
        with failed_disk_is_told(self._folder / name):
            try:
                return (self._folder / name).read_bytes()
            except FileNotFoundError:
                return None

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        with failed_disk_is_told(self._folder / name):
            descriptor, view = self._descriptor(name), memoryview(data)
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written

    def truncate(self, name: str, size: int) -> None:
        with failed_disk_is_told(self._folder / name):
            os.ftruncate(self._descriptor(name), size)
            os.fsync(self._descriptor(name))

    def sync(self, name: str) -> None:
        with failed_disk_is_told(self._folder / name):
            os.fdatasync(self._descriptor(name))

    def replace(self, name: str, content: bytes) -> None:
        with failed_disk_is_told(self._folder / name):
            self._forget(name)
            write_atomic(self._folder / name, content, mode=0o600)

    def remove(self, name: str) -> None:
        with failed_disk_is_told(self._folder / name):
            self._forget(name)
            (self._folder / name).unlink()

    def sync_names(self) -> None:
        with failed_disk_is_told(self._folder):
            sync_folder(self._folder)

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def close(self) -> None:
        for name in list(self._open):
            self._forget(name)

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            self._open[name] = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
        return self._open[name]

    def _forget(self, name: str) -> None:
        descriptor = self._open.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)
