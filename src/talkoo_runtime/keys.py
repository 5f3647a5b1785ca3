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


def new_key() -> PrivateKey:
    return PrivateKey.from_seed(secrets.token_bytes(SEED_BYTES))


def address_of(key: PrivateKey) -> str:
    """The `tlk1…` address that the key signs for."""
    return address_of_key(key.public.raw)


def save_key(path: Path, key: PrivateKey, seed: bytes) -> None:
    """Write a new key file with mode 0600; an existing one is never overwritten (`FileExistsError`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"type": "ed25519", "seed": seed.hex(), "address": address_of(key)}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(body, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def create_key(path: Path) -> PrivateKey:
    """Make a key and its file at once."""
    seed = secrets.token_bytes(SEED_BYTES)
    key = PrivateKey.from_seed(seed)
    save_key(path, key, seed)
    return key


def load_key(path: Path) -> PrivateKey:
    """Read a key file. Raises NotFound, PermissionDenied (readable by others) or Corrupt (not a key, wrong address)."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no key file {path}; `talkoo up` makes one for each user and service") from None
    if mode & _OTHERS:
        raise PermissionDenied(f"{path} can be read by others; run: chmod 600 {path}", code="key_file_open")
    try:
        body = json.loads(text)
        key = PrivateKey.from_seed(bytes.fromhex(body["seed"]))
        written = body["address"]
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} is not a key file ({error}); restore it from your backup") from None
    if written != address_of(key):
        raise Corrupt(f"{path} names the address {written} but its seed belongs to {address_of(key)}; restore it")
    return key
