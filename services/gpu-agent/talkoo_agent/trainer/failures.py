"""What torch raises, told apart: a lost peer, memory that ran out, anything else."""

from __future__ import annotations

import torch.distributed as dist

from talkoo_core.errors import Exhausted, Failed, TalkooError
from talkoo_math.program import is_out_of_memory


def raise_again(error: Exception) -> None:
    raise error


def is_network(error: Exception) -> bool:
    """gloo and NCCL report through RuntimeError; their texts name themselves."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    known = (
        "gloo",
        "NCCL",
        "Connection closed by peer",
        "Connection reset",
        "Broken pipe",
        "Timed out waiting",
        "recv",
    )
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and any(word in text for word in known)


def first_line(error: BaseException) -> str:
    """torch appends a C++ stack; the first line says it."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def failure_of(error: BaseException) -> TalkooError:
    """Everything that stops a child, as a typed error."""
    if isinstance(error, TalkooError):
        return error
    if is_out_of_memory(error):
        return Exhausted(
            "the node ran out of memory; use a smaller global batch or a node with more", code="out_of_memory"
        )
    return Failed(f"{type(error).__name__}: {first_line(error)}", code="internal")
