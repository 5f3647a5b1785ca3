"""Looks at the user's module without running it: is it Python, does it define what a program needs.

What only shows when the code runs is found by the child that counts operations, and by the agents.
"""

from __future__ import annotations

import ast
from pathlib import Path

from talkoo_core.errors import InvalidInput, NotFound

FUNCTIONS = ("build_model", "open_data", "loss", "correct", "predict")
"""The contract of a program; `talkoo_math.program` says what each takes and returns."""
CLASS = "Task"


def check_program(folder: Path, module: str) -> None:
    """Raises NotFound (no folder) or InvalidInput (codes `missing_module`, `bad_program`)."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}; set spec.program.path to the folder of your module")
    path = folder / f"{module}.py"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.py"))) or "no Python file"
        raise InvalidInput(
            f"there is no module {module!r} ({path}); spec.program.module must name one of: {known}",
            code="missing_module",
        )
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        reason = getattr(error, "msg", None) or str(error)
        raise InvalidInput(f"{path}:{line or 1}: not valid Python: {reason}", code="bad_program") from None
    defined, open_ended = _bound_names(tree.body)
    owner = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == CLASS), None)
    if owner is not None:
        defined, open_ended = _bound_names(owner.body)
        open_ended = open_ended or bool(owner.bases)
    missing = [name for name in FUNCTIONS if name not in defined]
    if missing and not open_ended:
        raise InvalidInput(
            f"{path} does not define {', '.join(f'{name}()' for name in missing)}; "
            f"a program needs {', '.join(FUNCTIONS)}",
            code="bad_program",
        )


def _bound_names(body: list[ast.stmt]) -> tuple[set[str], bool]:
    """Names bound at the top of a body, and whether more may be bound that only running tells (`import *`)."""
    names: set[str] = set()
    open_ended = False
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
            open_ended = open_ended or any(alias.name == "*" for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.If | ast.Try | ast.With):
            inner, more = _bound_names(node.body)
            names |= inner
            open_ended = open_ended or more
    return names, open_ended
