"""Light blocks that were verified, on disk: one file for each, so that a crash leaves the ones before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from talkoo_consensus.encoding import decode_commit, decode_header, encode_commit, encode_header
from talkoo_consensus.light import LightBlock, check_light_block
from talkoo_consensus.validators import Validator, ValidatorSet

from talkoo_core.errors import Corrupt, TalkooError
from talkoo_runtime.disk import write_atomic

KEPT_BLOCKS = 100
_DIGEST_BYTES = 32


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    header: bytes
    commit: bytes
    validators: tuple[tuple[bytes, int], ...]


class LightStore:
    """The newest KEPT_BLOCKS that were verified, of one chain in one folder."""

    def __init__(self, folder: Path, chain_id: str = "") -> None:
        self._folder = folder
        self._chain_id = chain_id

    def save(self, block: LightBlock) -> None:
        """Durable when it returns. Raises Exhausted when the disk is full."""
        validators = tuple((v.public_key, v.power) for v in block.validators.validators)
        content = msgspec.msgpack.encode(_Stored(encode_header(block.header), encode_commit(block.commit), validators))
        write_atomic(self._path(block.height), hashlib.sha256(content).digest() + content)
        for old in self._paths()[:-KEPT_BLOCKS]:
            old.unlink(missing_ok=True)

    def newest(self) -> LightBlock | None:
        """Raises Corrupt (code `light_store_damaged`) where its file is not what was written."""
        paths = self._paths()
        return self._read(paths[-1]) if paths else None

    def at(self, height: int) -> LightBlock | None:
        path = self._path(height)
        return self._read(path) if path.exists() else None

    def below(self, height: int) -> LightBlock | None:
        """The newest that is kept below a height."""
        paths = [path for path in self._paths() if path < self._path(height)]
        return self._read(paths[-1]) if paths else None

    def oldest(self) -> LightBlock | None:
        paths = self._paths()
        return self._read(paths[0]) if paths else None

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("*.light")) if self._folder.is_dir() else []

    def _path(self, height: int) -> Path:
        return self._folder / f"{height:020d}.light"

    def _read(self, path: Path) -> LightBlock:
        data = path.read_bytes()
        content = data[_DIGEST_BYTES:]
        try:
            if hashlib.sha256(content).digest() != data[:_DIGEST_BYTES]:
                raise ValueError("its checksum does not fit")
            stored = msgspec.msgpack.decode(content, type=_Stored)
            validators = ValidatorSet(tuple(Validator.of(key, power) for key, power in stored.validators))
            block = LightBlock(decode_header(stored.header), decode_commit(stored.commit), validators)
            check_light_block(self._chain_id or block.header.chain_id, block)
        except (ValueError, msgspec.DecodeError, TalkooError) as error:
            raise Corrupt(
                f"{path} is damaged or of another chain ({error}); remove it, or begin anew with --trusted-height and "
                "--trusted-hash in an empty --store",
                code="light_store_damaged",
            ) from None
        return block
