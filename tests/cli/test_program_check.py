"""The user's module is looked at, never run."""

from __future__ import annotations

from pathlib import Path

import pytest

from talkoo.program_check import FUNCTIONS, check_program
from talkoo_core.errors import InvalidInput, NotFound

WHOLE = "raise SystemExit('this module must not run')\n" + "".join(f"def {name}(*a): ...\n" for name in FUNCTIONS)


def test_a_module_with_the_five_functions_passes_without_being_run(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(WHOLE)
    check_program(tmp_path, "m")


def test_a_class_task_with_the_five_methods_passes(tmp_path: Path) -> None:
    body = "".join(f"    def {name}(self, *a): ...\n" for name in FUNCTIONS)
    (tmp_path / "m.py").write_text("class Task:\n" + body)
    check_program(tmp_path, "m")


def test_names_that_are_imported_or_assigned_count(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "from parts import build_model, open_data as open_data\nloss = correct = predict = 1\n"
    )
    check_program(tmp_path, "m")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(WHOLE.replace("def predict(*a): ...\n", "").replace("def loss(*a): ...\n", ""))
    with pytest.raises(InvalidInput, match=r"m.py does not define loss\(\), predict\(\); a program needs build_model"):
        check_program(tmp_path, "m")


def test_a_missing_module_names_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "digits.py").write_text("")
    with pytest.raises(InvalidInput, match=r"no module 'digit' .* must name one of: digits") as caught:
        check_program(tmp_path, "digit")
    assert caught.value.code == "missing_module"
    with pytest.raises(NotFound, match="there is no folder"):
        check_program(tmp_path / "nowhere", "digits")


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("x = 1\ndef loss(:\n")
    with pytest.raises(InvalidInput, match=r"m.py:2: not valid Python: "):
        check_program(tmp_path, "m")
