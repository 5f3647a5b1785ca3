"""Writing files so that a crash leaves the old content or the new, never half of it."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from talkoo_core.errors import Exhausted

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
