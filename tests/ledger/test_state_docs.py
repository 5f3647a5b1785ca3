"""docs/ledger.md names everything the ledger has: parameters with their defaults, transactions, events, error codes."""

from __future__ import annotations

import re
from pathlib import Path

import talkoo_ledger
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_ledger.bounds import FAILURE_KINDS
from talkoo_ledger.genesis import default_params
from talkoo_ledger.records import Params
from talkoo_ledger.state import State
from talkoo_ledger.transition import RULES

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "ledger.md").read_text()
CODES_OF_FILES = {"bad_genesis", "bad_proof", "bad_state_value", "state_mismatch", "unknown_module"}
"""Answers to whoever runs a node, not to a transaction."""


def rule_sources() -> str:
    """Source of the modules a transaction can reach."""
    folder = Path(talkoo_ledger.__file__).parent
    names = {rule.__module__.rpartition(".")[2] for rule in RULES.values()}
    names |= {
        "application",
        "audits",
        "bounds",
        "context",
        "epochs",
        "misbehavior",
        "models",
        "rewards",
        "transition",
        "wire",
    }
    return "\n".join((folder / f"{name}.py").read_text() for name in sorted(names))


def test_every_parameter_stands_there_with_its_default() -> None:
    params = default_params()
    assert set(params) == set(Params.__struct_fields__)
    for name, value in params.items():
        assert f"| `{name}` | {value} |" in DOCS, name


def test_every_transaction_stands_there() -> None:
    for field in tx_pb2.TxBody.DESCRIPTOR.oneofs_by_name["message"].fields:
        assert f"| `{field.name}` |" in DOCS, field.name


def test_every_event_stands_there_and_no_other() -> None:
    emitted = set(re.findall(r'\.emit\(\s*"([a-z_]+)"', rule_sources()))
    assert len(emitted) > 20
    table = DOCS.split("## Events")[1].split("## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE)) == emitted


def test_every_error_code_and_failure_kind_stands_there() -> None:
    codes = set(re.findall(r'code="([a-z_]+)"', rule_sources())) - CODES_OF_FILES
    assert len(codes) > 40
    assert [code for code in sorted(codes | set(FAILURE_KINDS)) if f"`{code}`" not in DOCS] == []


def test_every_module_of_the_state_stands_there() -> None:
    assert [module for module in State.MODULES if f"`{module}`" not in DOCS] == []
