"""The user's program: a Python module that brings a model, a loss and a data reader.

The module (or a class `Task` in it, taken without arguments) has these functions:

    build_model(config: dict) -> torch.nn.Module             initial parameters come from torch's seeded generator
    open_data(path: Path, split: str) -> data set            split is "train" or "heldout"; it has __len__() and
                                                              batch(indices: list[int]) -> tuple of tensors
    loss(model, batch) -> scalar float tensor                the MEAN over the samples of the batch
    correct(model, batch) -> int                             how many samples of the batch the model gets right
    predict(model, inputs: list) -> list                     JSON in, JSON out, one answer for each input

Everything must be a function of its arguments and of torch's generator (seeded for every step from the beacon), since a
validator computes the same steps again and wants the same bits. Whatever the user's code raises becomes a typed error
that names the user's file and line.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from talkoo_core.errors import Exhausted, Failed, InvalidInput, NotFound, TalkooError

FUNCTIONS = ("build_model", "open_data", "loss", "correct", "predict")
Split = Literal["train", "heldout"]
Batch = tuple[Tensor, ...]
T = TypeVar("T")


class DataSet(Protocol):
    def __len__(self) -> int: ...

    def batch(self, indices: list[int]) -> Batch: ...


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded user module. Each method calls the user's function and checks what it returns."""

    folder: Path
    module: str
    functions: dict[str, Callable[..., Any]]

    def build_model(self, config: dict[str, Any], seed: int) -> nn.Module:
        """A fresh model whose initial parameters depend on `seed` alone, in training mode, on the CPU."""
        torch.manual_seed(seed & ((1 << 63) - 1))
        model = self._call("build_model", config)
        if not isinstance(model, nn.Module):
            raise self._wrong("build_model", "a torch.nn.Module", model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InvalidInput(f"the model of {self.module}.build_model has nothing to train", code="bad_program")
        return model.train()

    def open_data(self, path: Path, split: Split) -> DataSet:
        """The user's data set of one split. Raises `NotFound` (code `data_missing`) where there is no such file."""
        if not path.exists():
            raise NotFound(f"the data file {path.name} is not there; check spec.data of the task", code="data_missing")
        data = self._call("open_data", path, split)
        if not hasattr(data, "__len__") or not callable(getattr(data, "batch", None)):
            raise self._wrong("open_data", "an object with __len__() and batch(indices)", data)
        if len(data) < 1:
            raise InvalidInput(f"{self.module}.open_data gave an empty {split} set", code="bad_program")
        return data  # type: ignore[no-any-return]  # checked just above, piece by piece

    def batch(self, data: DataSet, indices: list[int], device: torch.device) -> Batch:
        batch = guarded(f"{self.module}.open_data(...).batch", self.folder, lambda: data.batch(indices))
        if not isinstance(batch, tuple) or not batch or not all(isinstance(part, Tensor) for part in batch):
            raise self._wrong("open_data(...).batch", "a tuple of tensors", batch)
        if batch[0].dim() < 1 or batch[0].shape[0] != len(indices):
            raise self._wrong("open_data(...).batch", f"tensors of {len(indices)} samples", tuple(batch[0].shape))
        return tuple(part.to(device) for part in batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = self._call("loss", model, batch)
        if (
            not isinstance(loss, Tensor)
            or loss.dim() != 0
            or not loss.dtype.is_floating_point
            or not loss.requires_grad
        ):
            raise self._wrong("loss", "a scalar float tensor that depends on the parameters", loss)
        return loss

    def correct(self, model: nn.Module, batch: Batch) -> int:
        count = self._call("correct", model, batch)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= batch[0].shape[0]:
            raise self._wrong("correct", f"an int from 0 to {batch[0].shape[0]}", count)
        return count

    def predict(self, model: nn.Module, inputs: list[Any]) -> list[Any]:
        answers = self._call("predict", model, inputs)
        if not isinstance(answers, list) or len(answers) != len(inputs):
            raise self._wrong("predict", f"a list of {len(inputs)} answers", answers)
        return answers

    def _call(self, name: str, *arguments: Any) -> Any:
        return guarded(f"{self.module}.{name}", self.folder, lambda: self.functions[name](*arguments))

    def _wrong(self, name: str, wanted: str, got: object) -> InvalidInput:
        text = repr(got)
        short = text if len(text) <= 80 else text[:77] + "..."
        return InvalidInput(f"{self.module}.{name} must return {wanted}, not {short}", code="bad_program")


def guarded(what: str, folder: Path, call: Callable[[], T]) -> T:
    """Run the user's code. What it raises becomes `Failed` (`model_raised`) or `Exhausted` (`out_of_memory`)."""
    try:
        return call()
    except TalkooError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise Exhausted(
                f"{what} ran out of memory; use a smaller global batch, a smaller model or nodes with more memory",
                code="out_of_memory",
            ) from error
        raise Failed(
            f"{what} raised {type(error).__name__}: {error}{_place(error, folder)}", code="model_raised"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _place(error: BaseException, folder: Path) -> str:
    """` (digits.py, line 12)`: the deepest frame that is the user's own."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    return f" ({Path(own[-1].filename).relative_to(folder)}, line {own[-1].lineno})" if own else ""


def load_program(folder: Path, module: str) -> Program:
    """Import `<folder>/<module>.py`.

    The folder goes first on `sys.path`, so the module may import its neighbours; call once per process. Raises
    `InvalidInput` (codes `missing_module`, `bad_program`), or `Failed` (code `model_raised`) when the import raises.
    """
    folder = folder.resolve()
    stem = module.removesuffix(".py")
    path = folder / f"{stem}.py"
    if not stem.isidentifier() or not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.py"))) or "no Python file"
        raise InvalidInput(f"the program has no module {stem!r}; the folder holds {known}", code="missing_module")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    loaded = guarded(f"importing {stem}", folder, lambda: _import(path, stem))
    owner: Any = loaded
    if isinstance(getattr(loaded, "Task", None), type):
        owner = guarded(f"{stem}.Task", folder, loaded.Task)
    missing = [name for name in FUNCTIONS if not callable(getattr(owner, name, None))]
    if missing:
        raise InvalidInput(
            f"{stem}.py lacks {', '.join(missing)}(); a program needs {', '.join(FUNCTIONS)}", code="bad_program"
        )
    return Program(folder=folder, module=stem, functions={name: getattr(owner, name) for name in FUNCTIONS})


def _import(path: Path, stem: str) -> ModuleType:
    """A missing dependency of the user's module is told apart from our own imports by the name it asks for."""
    specification = importlib.util.spec_from_file_location(f"talkoo_program_{stem}", path)
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = loaded  # dataclasses and pickling look the module up by its name
    try:
        specification.loader.exec_module(loaded)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{path.name} imports {error.name!r}, which this node does not have; put it into the program's folder",
            code="missing_module",
        ) from error
    return loaded
