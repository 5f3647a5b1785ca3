"""docs/rpc.md names every method with its parameters, every bound with its value, every error code."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from talkoo_ledger import event_index
from talkoo_ledger.rpc import calls, chain, errors, searches, server, subscriptions, transactions
from talkoo_ledger.rpc.parameters import Kind, Parameter
from talkoo_ledger.rpc.routes import PARAMETERS, WEBSOCKET_PARAMETERS

DOCS = (Path(__file__).parents[2] / "docs" / "rpc.md").read_text()
MODULES: tuple[ModuleType, ...] = (calls, chain, event_index, searches, server, subscriptions, transactions)


def rows(heading: str, columns: int) -> dict[str, list[str]]:
    """Of the tables of a section: the first cell without its marks, and the others."""
    section = DOCS.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells if len(row) == columns}


def shown(parameter: Parameter) -> str:
    return f"`{parameter.name}` (hex)" if parameter.kind is Kind.HEX else f"`{parameter.name}`"


def test_every_method_stands_there_with_its_parameters_and_no_other() -> None:
    documented = {name.strip("`"): cells[0] for name, cells in rows("Methods", 3).items() if name.startswith("`")}
    expected = {
        name: ", ".join(map(shown, parameters)) or "–"
        for name, parameters in (PARAMETERS | WEBSOCKET_PARAMETERS).items()
    }
    assert documented == expected


def test_every_bound_stands_there_with_its_value() -> None:
    documented = {name.split("`")[1]: cells[0] for name, cells in rows("Bounds", 2).items() if "`" in name}
    values = {name: getattr(module, name) for module in MODULES for name in vars(module) if name in documented}
    assert {name: f"{value:.0f}" for name, value in values.items()} == documented
    # Whatever is called a most in the server, the calls and the subscriptions is told.
    named = {
        name for module in (calls, server, subscriptions) for name in vars(module) if re.match(r"MAX_[A-Z_]+$", name)
    }
    assert named - set(documented) == {"MAX_ID_LENGTH", "MAX_PARAMETERS", "MAX_QUERY_STRING_BYTES", "MAX_BEHIND"}


def test_every_error_code_stands_there_and_no_other() -> None:
    documented = {int(code) for code in rows("Errors", 3) if code.startswith("-3")}
    assert documented == set(errors.MESSAGES)
