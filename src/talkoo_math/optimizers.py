"""Optimizers a task may name, with options as exact texts, and always the plain (one tensor at a time) kernels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from talkoo_core.errors import InvalidInput

KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "sgd": ("lr", "momentum", "dampening", "weight_decay"),
    "adam": ("lr", "beta1", "beta2", "eps", "weight_decay"),
    "adamw": ("lr", "beta1", "beta2", "eps", "weight_decay"),
}


def build_optimizer(name: str, options_json: str, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """An optimizer over `parameters`. `options_json`: numbers by name, as texts or numbers (`{"lr":"0.001"}`).

    Raises `InvalidInput` (code `bad_optimizer`) that lists what is known.
    """
    if name not in KINDS:
        raise InvalidInput(f"there is no optimizer {name!r}; known are {', '.join(KINDS)}", code="bad_optimizer")
    try:
        given = json.loads(options_json or "{}")
        options: dict[str, Any] = {key: float(value) for key, value in given.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(f"optimizer options must be numbers by name: {error}", code="bad_optimizer") from error
    unknown = sorted(set(options) - set(OPTIONS[name]))
    if unknown:
        known = ", ".join(OPTIONS[name])
        raise InvalidInput(f"{name} has no option {', '.join(unknown)}; known are {known}", code="bad_optimizer")
    if "lr" not in options:
        raise InvalidInput(f"{name} needs a learning rate: add lr to the optimizer", code="bad_optimizer")
    if name != "sgd":
        options["betas"] = (options.pop("beta1", 0.9), options.pop("beta2", 0.999))
    try:
        return KINDS[name](list(parameters), foreach=False, **options)
    except ValueError as error:
        raise InvalidInput(f"{name} refuses its options: {error}", code="bad_optimizer") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The state as tensors named `<parameter>/<key>`; none before the first step. `names`: in the optimizer's order."""
    out: dict[str, Tensor] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(parameters) == len(names)
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                out[f"{name}/{key}"] = value
    return out


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave. Raises `InvalidInput` (code `bad_checkpoint`) on a foreign name."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_name = dict(zip(names, parameters, strict=True))
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in by_name:
            raise InvalidInput(
                f"the optimizer checkpoint knows a parameter {name!r} that the model lacks", code="bad_checkpoint"
            )
        # Adam's step count stays on the CPU, its moments live where the parameter does.
        device = torch.device("cpu") if key == "step" else by_name[name].device
        optimizer.state[by_name[name]][key] = tensor.clone().to(device)
