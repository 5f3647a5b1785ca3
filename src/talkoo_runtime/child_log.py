"""The log file of a child: bounded, and never a reason to stop reading what the child says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)
MAX_LOG_BYTES = 16 * 1024 * 1024


class ChildLog:
    """Appends; over its bound the file is moved aside to `<name>.old.log`, so at most two are kept.

    A log that cannot be written (a full disk) is told once; what is said meanwhile is lost, the child goes on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._told = False

    def write(self, chunk: bytes) -> None:
        try:
            file = self._open()
            file.write(chunk)
            if file.tell() > MAX_LOG_BYTES:
                self.close()
                self._path.replace(self._path.with_suffix(".old.log"))
            self._told = False
        except OSError as error:
            if not self._told:
                log.warning("%s cannot be written (%s); lines are lost until it can", self._path, error.strerror)
            self._told = True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        return self._file
