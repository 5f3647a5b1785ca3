"""Fetch what a shard or a model needs from the blob store into a folder, verified by hash."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from talkoo_api.ledger.v1 import state_pb2

from talkoo_agent.wire import data_file_name
from talkoo_core.errors import Corrupt, NotFound
from talkoo_runtime.blobs import BlobStore
from talkoo_runtime.bundle import unpack


async def fetch_code(blobs: BlobStore, sha256: str, folder: Path) -> None:
    """Unpack the program into an empty `folder`. Raises NotFound or Corrupt (code `missing_module`)."""
    try:
        bundle = await blobs.get(sha256)
        await asyncio.to_thread(_unpack_anew, bundle, folder)
    except NotFound as error:
        raise NotFound("the program's blob is not stored; submit again", code="missing_module") from error
    except Corrupt as error:
        raise Corrupt(f"the program cannot be unpacked: {error.message}", code="missing_module") from error


async def fetch_for_task(blobs: BlobStore, task: state_pb2.Task, folder: Path) -> None:
    """`code/`, `data/<name>` and the checkpoints to start from. Raises errors whose code is the failure's kind."""
    await fetch_code(blobs, task.spec.code.sha256, folder / "code")
    data = folder / "data" / data_file_name(task.spec)
    data.parent.mkdir(parents=True, exist_ok=True)
    try:
        await blobs.get_to_file(task.spec.data.sha256, data)
    except NotFound as error:
        raise NotFound(
            f"the data {data.name} (SHA-256 {task.spec.data.sha256[:16]}…) is not in the store; submit again",
            code="data_missing",
        ) from error
    except Corrupt as error:
        raise Corrupt(f"the stored data {data.name} is not what its hash says", code="data_hash") from error
    if task.start_params_sha256:
        await blobs.get_to_file(task.start_params_sha256, folder / "params.safetensors")
    if task.start_optimizer_sha256:
        await blobs.get_to_file(task.start_optimizer_sha256, folder / "optimizer.safetensors")


def _unpack_anew(bundle: bytes, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    unpack(bundle, folder)
