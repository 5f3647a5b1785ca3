"""From a checked task file to the transaction that creates the task: pack, hash, count, compute the price.

Everything that can be wrong with the owner's files is found here, before any money moves.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from talkoo_api.ledger.v1 import state_pb2, tx_pb2

from talkoo.program_check import check_program
from talkoo.taskfile import TaskFile
from talkoo_core.amounts import PPM, format_tlk
from talkoo_core.errors import Exhausted, InsufficientFunds, InvalidInput, NotFound
from talkoo_runtime.bundle import pack_folder
from talkoo_runtime.flop_count import count_flops

MAX_DATA_BYTES = 256 * 1024 * 1024
"""The gateway takes no larger blob."""
HASH_CHUNK_BYTES = 1 << 20
FLOPS_PER_GFLOP = 10**9
_DATA_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
"""What the ledger takes as `data_name`."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task ready to be sent: its specification and the two blobs that it names."""

    spec: tx_pb2.TaskSpec
    code: bytes
    data: Path | bytes
    budget_utlk: int


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes. Raises NotFound, InvalidInput or Exhausted."""
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                size += len(chunk)
                if size > MAX_DATA_BYTES:
                    raise Exhausted(f"{path} is larger than {MAX_DATA_BYTES >> 20} MiB, the most a gateway takes")
                digest.update(chunk)
    except FileNotFoundError:
        raise NotFound(
            f"there is no data file {path}; make it, or correct spec.data.path", code="data_missing"
        ) from None
    except OSError as error:
        raise InvalidInput(f"the data file {path} cannot be read: {error.strerror}", code="data_missing") from None
    return digest.hexdigest(), size


Count = Callable[[TaskFile, bytes, Path], Awaitable[int]]
"""Operations of one sample of a program (packed) on a data file."""


async def count_here(task: TaskFile, code: bytes, data: Path) -> int:
    """By running the module once in a child process, which needs torch."""
    return await count_flops(code, data, task.module, task.config_json)


@dataclass(frozen=True, slots=True)
class Packed:
    """A program that was checked and packed, and its data: what tasks that differ in numbers only have in common."""

    code: bytes
    data_name: str
    data_sha256: str
    data_bytes: int


async def prepare(task: TaskFile, folder: Path, count: Count = count_here) -> Prepared:
    """Check and pack a task whose paths are relative to `folder`."""
    packed, data = await pack(task, folder)
    return prepared_of(task, packed, data, await count(task, packed.code, data))


async def pack(task: TaskFile, folder: Path) -> tuple[Packed, Path]:
    """The program as it will be sent, and where the data lies."""
    if not task.data_path:
        raise InvalidInput("spec.data.path is missing: a Dataset is found on a cluster only; name the file here")
    program = (folder / task.program_path).resolve()
    data = (folder / task.data_path).resolve()
    check_program(program, task.module)
    if not _DATA_NAME.fullmatch(data.name):
        raise InvalidInput(
            f"the data file's name {data.name!r} may hold only letters, digits, '_', '.' and '-'; rename it",
            code="bad_field",
        )
    sha256, size = await asyncio.to_thread(hash_file, data)
    if task.data_sha256 and task.data_sha256 != sha256:
        raise InvalidInput(
            f"the data file {data} has the SHA-256 {sha256}, not the {task.data_sha256} of spec.data.sha256; "
            "fetch the right file, or correct the hash",
            code="data_hash",
        )
    code = await asyncio.to_thread(pack_folder, program, frozenset({data}))
    return Packed(code, data.name, sha256, size), data


def prepared_of(task: TaskFile, packed: Packed, data: Path | bytes, flops_per_sample: int) -> Prepared:
    """A task of which everything is known. `data`: what `packed` says of it was found there."""
    spec = tx_pb2.TaskSpec(
        name=task.name,
        mode=task.mode,
        code=tx_pb2.BlobRef(sha256=hashlib.sha256(packed.code).hexdigest(), size_bytes=len(packed.code)),
        module=task.module,
        data=tx_pb2.BlobRef(sha256=packed.data_sha256, size_bytes=packed.data_bytes),
        data_name=packed.data_name,
        config_json=task.config_json,
        optimizer=tx_pb2.Optimizer(name=task.optimizer, options_json=task.optimizer_options_json),
        global_batch=task.global_batch,
        steps=task.steps,
        steps_per_segment=task.steps_per_segment,
        min_nodes=task.min_nodes,
        max_nodes=task.max_nodes,
        memory_bytes=task.memory_bytes,
        price_utlk_per_gflop=task.price_utlk_per_gflop,
        audit_rate_ppm=task.audit_rate_ppm,
        seed=task.seed,
        model_name=task.model_name,
        parent_version=task.parent_version,
        flops_per_sample=flops_per_sample,
        licence=task.licence,
        request_price_utlk=task.request_price_utlk,
    )
    return Prepared(spec=spec, code=packed.code, data=data, budget_utlk=task.budget_utlk)


def has_torch() -> bool:
    """Whether this environment can count a model's operations itself."""
    return importlib.util.find_spec("torch") is not None


def least_escrow_utlk(spec: tx_pb2.TaskSpec, params: state_pb2.Params) -> int:
    """What the whole task costs at the owner's price with every segment opened, rounded up: the ledger's own rule."""
    flops = spec.steps * spec.global_batch * spec.flops_per_sample
    return -(-flops * spec.price_utlk_per_gflop * (PPM + params.validation_ppm) // (FLOPS_PER_GFLOP * PPM))


def check_means(prepared: Prepared, balance_utlk: int, who: str, params: state_pb2.Params) -> None:
    """Raises InsufficientFunds when the budget cannot cover the task, or the account not the budget."""
    least = least_escrow_utlk(prepared.spec, params)
    if prepared.budget_utlk < least:
        raise InsufficientFunds(
            f"the budget of {format_tlk(prepared.budget_utlk)} does not cover {prepared.spec.steps} steps at "
            f"{format_tlk(prepared.spec.price_utlk_per_gflop)} per GFLOP, which may cost {format_tlk(least)}; "
            f"raise spec.budget by {format_tlk(least - prepared.budget_utlk)}, or lower spec.price or spec.steps",
            code="budget_too_small",
        )
    needed = prepared.budget_utlk + params.min_fee_utlk
    if balance_utlk < needed:
        raise InsufficientFunds(
            f"{who} holds {format_tlk(balance_utlk)} but the task needs {format_tlk(prepared.budget_utlk)} and a fee "
            f"of {format_tlk(params.min_fee_utlk)}: {format_tlk(needed - balance_utlk)} are missing; lower spec.budget "
            "or have them transferred",
            code="balance_too_small",
        )
