"""The rules are pure: time, randomness and the network are arguments, never imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import talkoo_ledger

FOLDER = Path(talkoo_ledger.__file__).parent
FORBIDDEN = {"asyncio", "grpc", "os", "random", "secrets", "socket", "sqlite3", "subprocess", "threading", "time"}
PURE = (
    *("accusations", "application", "audits", "bounds", "codec", "context", "economy", "epochs", "genesis"),
    *("messages", "models"),
    *(
        "members",
        "misbehavior",
        "nodes",
        "placement",
        "records",
        "requests",
        "rewards",
        "segments",
        "stake",
        "state",
        "tasks",
        "transfers",
    ),
    *("transition", "tree", "verdicts", "wire"),
)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("name", PURE)
def test_module_imports_nothing_that_differs_from_machine_to_machine(name: str) -> None:
    imported = imports_of(FOLDER / f"{name}.py")
    assert not {each.partition(".")[0] for each in imported} & FORBIDDEN
    ours = {each.partition(".")[2] for each in imported if each.startswith("talkoo_ledger.")}
    assert ours <= set(PURE), "a pure module imports the shell"


@pytest.mark.parametrize("name", sorted(set(PURE) - {"wire", "codec"}))
def test_only_wire_and_its_codec_know_proto(name: str) -> None:
    assert not [each for each in imports_of(FOLDER / f"{name}.py") if each.startswith(("talkoo_api", "google"))]


def test_files_stay_below_five_hundred_lines() -> None:
    lengths = {name: len((FOLDER / f"{name}.py").read_text().splitlines()) for name in PURE}
    assert max(lengths.values()) < 500, lengths
