"""docs/engines.md names every setting, and the errors that send an operator there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from talkoo_ledger.settings import CometSettings, LedgerSettings

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("field", msgspec.structs.fields(CometSettings), ids=lambda field: field.name)
def test_every_setting_of_cometbft_is_explained_with_its_default(field: msgspec.structs.FieldInfo) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `comet.{field.name}` |")]
    shown = row.split("|")[2].strip().strip("`")
    assert shown == {"": "empty", (): "none", True: "true"}.get(field.default, field.default)


@pytest.mark.parametrize("name", ["engine", "halt_height"])
def test_the_settings_that_choose_are_explained(name: str) -> None:
    default = {field.name: field.default for field in msgspec.structs.fields(LedgerSettings)}[name]
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    assert row.split("|")[2].strip().strip("`") == str(default)


def test_no_setting_is_explained_that_is_not_there() -> None:
    named = {line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `comet.")}
    assert named == {f"comet.{field.name}" for field in msgspec.structs.fields(CometSettings)}


@pytest.mark.parametrize("code", ["other_engine", "no_engine"])
def test_errors_that_stop_an_operator_are_explained(code: str) -> None:
    assert f"`{code}`" in PAGE
