"""Key files of accounts and validators: JSON, readable by their owner only."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from talkoo_core.errors import Corrupt, NotFound, PermissionDenied
from talkoo_core.ids import address_of_key
from talkoo_core.signing import PrivateKey

SEED_BYTES = 32
_OTHERS = 0o077
_OTHERS_BUT_READING_GROUP = 0o037


def new_key() -> PrivateKey:
    return PrivateKey.from_seed(secrets.token_bytes(SEED_BYTES))


def address_of(key: PrivateKey) -> str:
    """The `tlk1…` address that the key signs for."""
    return address_of_key(key.public.raw)


def key_document(seed: bytes) -> str:
    """What a key file holds."""
    body = {"type": "ed25519", "seed": seed.hex(), "address": address_of(PrivateKey.from_seed(seed))}
    return json.dumps(body, indent=2) + "\n"


def key_of_document(text: str, where: str) -> PrivateKey:
    """Raises Corrupt, naming where it stood, for anything but a key with its own address."""
    try:
        body = json.loads(text)
        key = PrivateKey.from_seed(bytes.fromhex(body["seed"]))
        written = body["address"]
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{where} is not a key file ({error}); restore it from your backup") from None
    if written != address_of(key):
        raise Corrupt(f"{where} names the address {written} but its seed belongs to {address_of(key)}; restore it")
    return key


def save_key(path: Path, seed: bytes) -> None:
    """Write a new key file with mode 0600; an existing one is never overwritten (`FileExistsError`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(key_document(seed))
        file.flush()
        os.fsync(file.fileno())


def create_key(path: Path) -> PrivateKey:
    """Make a key and its file at once."""
    seed = secrets.token_bytes(SEED_BYTES)
    key = PrivateKey.from_seed(seed)
    save_key(path, seed)
    return key


def load_key(path: Path) -> PrivateKey:
    """Read a key file. Raises NotFound, PermissionDenied (readable by others) or Corrupt (not a key, wrong address)."""
    try:
        state = path.stat()
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no key file {path}; `talkoo up` makes one for each user and service") from None
    # A Secret mounted into a pod belongs to root and is readable by the pod's group: nobody else is in it.
    mounted = state.st_uid == 0 and os.geteuid() != 0
    if state.st_mode & (_OTHERS_BUT_READING_GROUP if mounted else _OTHERS):
        raise PermissionDenied(f"{path} can be read by others; run: chmod 600 {path}", code="key_file_open")
    return key_of_document(text, str(path))
