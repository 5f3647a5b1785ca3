"""Checkpoints as safetensors bytes: equal state gives equal bytes, hence the same content address everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from talkoo_core.errors import Corrupt, InvalidInput


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """safetensors writes its header in an order fixed by dtype and name, without times or paths."""
    return save({name: tensors[name].detach().to("cpu").contiguous().clone() for name in sorted(tensors)})


def tensors_from_bytes(data: bytes, what: str) -> dict[str, Tensor]:
    """Raises `Corrupt` (code `bad_checkpoint`) when the bytes are not a safetensors file."""
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise Corrupt(f"{what} is not a safetensors file: {error}", code="bad_checkpoint") from error


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied parameters appear once, under their first name."""
    persistent = model.state_dict(keep_vars=True)
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in persistent.items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            out[name] = tensor.detach()
    return out


def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into the model, in place. Raises `InvalidInput` (code `bad_checkpoint`) where shapes differ."""
    own = model_tensors(model)
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or foreign:
        raise InvalidInput(
            f"the checkpoint does not fit the model: it lacks {missing[:3]} and has unknown {foreign[:3]}",
            code="bad_checkpoint",
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape or tensor.dtype != tensors[name].dtype:
            raise InvalidInput(
                f"{name} is {list(tensors[name].shape)} {tensors[name].dtype} in the checkpoint and "
                f"{list(tensor.shape)} {tensor.dtype} in the model",
                code="bad_checkpoint",
            )
        tensor.copy_(tensors[name])
