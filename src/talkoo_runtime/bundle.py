"""A program folder as one blob: a zip with sorted names and fixed times, so that equal folders have equal hashes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path, PurePosixPath

from talkoo_core.errors import Corrupt, Exhausted, InvalidInput, NotFound

MAX_BUNDLE_BYTES = 64 * 1024 * 1024
MAX_BUNDLE_FILES = 10_000
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SKIPPED_FOLDERS = frozenset({"__pycache__", ".git", ".venv", "node_modules", ".talkoo"})
_SKIPPED_SUFFIXES = frozenset({".pyc", ".pyo"})


def program_files(folder: Path, leave_out: frozenset[Path] = frozenset()) -> list[Path]:
    """The files of a program folder, sorted, without caches, hidden folders, links and `leave_out` (data)."""
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part in _SKIPPED_FOLDERS or part.startswith(".") for part in relative.parts)
        if hidden or path.is_symlink() or not path.is_file():
            continue
        if path.suffix in _SKIPPED_SUFFIXES or path.resolve() in leave_out:
            continue
        found.append(path)
        if len(found) > MAX_BUNDLE_FILES:
            raise Exhausted(f"{folder} has more than {MAX_BUNDLE_FILES} files; point program.path at a smaller folder")
    return found


def pack_folder(folder: Path, leave_out: frozenset[Path] = frozenset()) -> bytes:
    """Zip a program folder. Raises NotFound, InvalidInput (empty) or Exhausted (over `MAX_BUNDLE_BYTES`)."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}; set program.path to the folder of your module")
    files = program_files(folder, leave_out)
    if not files:
        raise InvalidInput(f"{folder} holds no files; set program.path to the folder of your module")
    buffer = io.BytesIO()
    total = 0
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            content = path.read_bytes()
            total += len(content)
            if total > MAX_BUNDLE_BYTES:
                raise Exhausted(
                    f"the program in {folder} is larger than {MAX_BUNDLE_BYTES >> 20} MiB; keep data out of it "
                    "(name the data file under spec.data)"
                )
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def unpack(bundle: bytes, into: Path) -> None:
    """Unzip a program into a new or empty folder. Raises Corrupt for anything `pack_folder` would not have made."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(bundle))
    except zipfile.BadZipFile:
        raise Corrupt("the program blob is not a zip file; submit the task again") from None
    with archive:
        entries = archive.infolist()
        if len(entries) > MAX_BUNDLE_FILES or sum(e.file_size for e in entries) > MAX_BUNDLE_BYTES:
            raise Corrupt("the program blob unpacks to more than a program may have; submit a smaller one")
        for entry in entries:
            name = PurePosixPath(entry.filename)
            if name.is_absolute() or ".." in name.parts or entry.is_dir() or (entry.external_attr >> 28) == 0xA:
                raise Corrupt(f"the program blob names the forbidden path {entry.filename!r}; submit the task again")
            target = into.joinpath(*name.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.write_bytes(archive.read(entry))
            except zipfile.BadZipFile:
                raise Corrupt(f"the program blob is damaged at {entry.filename!r}; submit the task again") from None
