"""What a user's module may do wrong, each with one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from talkoo_core.errors import Exhausted, Failed, InvalidInput, NotFound, TalkooError
from talkoo_math.optimizers import build_optimizer
from talkoo_math.program import load_program
from talkoo_math.step import StateRecipe, contribution_of, make_state

Folder = Callable[[str], Path]
FIVE = np.arange(5, dtype=np.int64)


def one_step(folder: Path) -> None:
    program = load_program(folder, "mine")
    recipe = StateRecipe({}, "sgd", '{"lr":"0.1"}', seed=1)
    state = make_state(program, recipe, torch.device("cpu"))
    contribution_of(state, program.open_data(folder / "data.bin", "train"), FIVE, 3, 5)


@pytest.mark.parametrize(
    ("before", "after", "family", "code", "says"),
    [
        ("def loss", "def lost", InvalidInput, "bad_program", "lacks loss"),
        ("import torch\n", "import torch\nimport no_such_package\n", InvalidInput, "missing_module", "no_such_package"),
        ("import torch\n", "import torch\n1/0\n", Failed, "model_raised", "importing mine raised ZeroDivisionError"),
        ("return Data()", "return 7", InvalidInput, "bad_program", "open_data must return"),
        ("return nn.Sequential", "return list", Failed, "model_raised", "build_model raised TypeError"),
        ("return nn.Seq", "return None and nn.Seq", InvalidInput, "bad_program", "torch.nn.Module, not None"),
        ("return nn.functional", "return 3 + nn.functional", TalkooError, "", ""),
        (
            "batch[1])\n\ndef correct",
            "batch[1]).item()\n\ndef correct",
            InvalidInput,
            "bad_program",
            "scalar float tensor",
        ),
        ("batch[1])\n\ndef correct", "batch[1]) * float('nan')\n\ndef correct", Failed, "loss_nan", "at step 3"),
        (
            "    return nn.functional",
            "    raise ValueError('no')\n    return nn.functional",
            Failed,
            "model_raised",
            "line",
        ),
        (
            "    return nn.functional",
            "    raise MemoryError\n    return nn.functional",
            Exhausted,
            "out_of_memory",
            "memory",
        ),
        ("return torch.cat", "return [], torch.cat", InvalidInput, "bad_program", "tuple of tensors"),
    ],
)
def test_a_faulty_program_is_answered_with_what_is_wrong(
    program_folder: Folder, program_text: str, before: str, after: str, family: type[TalkooError], code: str, says: str
) -> None:
    assert before in program_text
    folder = program_folder(program_text.replace(before, after, 1))
    if not code:
        one_step(folder)
        return
    with pytest.raises(family) as answer:
        one_step(folder)
    assert answer.value.code == code
    assert says in answer.value.message


def test_a_missing_module_names_what_is_there(program_folder: Folder, program_text: str) -> None:
    with pytest.raises(InvalidInput, match="no module 'yours'; the folder holds mine") as answer:
        load_program(program_folder(program_text), "yours")
    assert answer.value.code == "missing_module"


def test_missing_data_is_said_before_the_program_looks_for_it(program_folder: Folder, program_text: str) -> None:
    folder = program_folder(program_text)
    with pytest.raises(NotFound) as answer:
        load_program(folder, "mine").open_data(folder / "gone.npz", "train")
    assert answer.value.code == "data_missing"


def test_a_task_class_serves_as_well_as_functions(program_folder: Folder, program_text: str) -> None:
    body = "\n".join(f"    {line}" for line in program_text.splitlines() if not line.startswith(("import", "from")))
    text = "import torch\nfrom torch import nn\nclass Task:\n" + body.replace("(config)", "(self, config)")
    text = text.replace("(path, split)", "(self, path, split)").replace("(model, ", "(self, model, ")
    one_step(program_folder(text.replace("return Data()", "return self.Data()")))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("adem", '{"lr":"1"}', "known are sgd, adam, adamw"),
        ("sgd", '{"lr":"1","speed":"2"}', "no option speed"),
        ("sgd", "{}", "needs a learning rate"),
        ("sgd", '{"lr":"fast"}', "must be numbers"),
        ("adam", '{"lr":"-1"}', "refuses its options"),
    ],
)
def test_a_wrong_optimizer_is_answered_with_what_is_known(name: str, options: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        build_optimizer(name, options, [torch.zeros(1, requires_grad=True)])
