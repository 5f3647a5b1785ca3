"""What makes torch give the same bits twice on one hardware class: one thread, fixed kernels, seeds from the beacon."""

from __future__ import annotations

import hashlib
import platform
import struct

import torch

from talkoo_math.no_compiler import leave_compiler_out

THREADS = 1
"""Reductions split over threads change their order of addition, so a process trains with one."""


def make_deterministic() -> None:
    """Call once, before any tensor work. Safe to call again."""
    leave_compiler_out()
    torch.set_num_threads(THREADS)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports a compiler
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def step_seed(beacon: bytes, segment: int, step: int, rank: int) -> int:
    """63-bit seed of one rank's local step: dropout and other chance in the model can be computed again.

    `beacon` is the 32-byte block hash that was unknown until the segment began.
    """
    assert len(beacon) == 32
    material = b"talkoo/step-seed/v1" + beacon + struct.pack("<QQQ", segment, step, rank)
    return int.from_bytes(hashlib.sha256(material).digest()[:8], "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed torch's generators (numpy's and `random`'s are the user's own and are not seeded).

    As `torch.manual_seed`, without its look at every kind of accelerator, which takes half a millisecond in each step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


def hardware_class(device: torch.device, processor: str) -> str:
    """Machines of one class give equal bits: `cpu/x86_64/<model>/torch-2.13.0/threads-1` or `cuda/<model>/torch-…`.

    `processor` is the CPU's model name, read by the caller (this module asks no operating system).
    """
    version = torch.__version__.split("+")[0]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).replace("/", "-").replace(" ", "-")
        return f"cuda/{name}/torch-{version}/cuda-{torch.version.cuda}"
    name = processor.replace("/", "-").replace(" ", "-") or "unknown"
    return f"cpu/{platform.machine()}/{name}/torch-{version}/threads-{THREADS}"
