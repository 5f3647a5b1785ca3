"""Every setting of a ledger node stands in a page for operators, with its default."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from talkoo_ledger.settings import CometSettings, LedgerSettings

from talkoo_runtime.service_settings import ServiceSettings

DOCS = Path(__file__).parents[2] / "docs"
PAGES = "".join((DOCS / f"{page}.md").read_text() for page in ("networking", "engines", "rpc"))
OWN = [
    field
    for field in msgspec.structs.fields(LedgerSettings)
    if field.name not in ServiceSettings.__struct_fields__ and field.default is not msgspec.NODEFAULT
]


@pytest.mark.parametrize("field", [each for each in OWN if each.name != "comet"], ids=lambda field: field.name)
def test_a_ledger_setting_is_explained(field: msgspec.structs.FieldInfo) -> None:
    assert f"`{field.name}`" in PAGES or f"{field.name} =" in PAGES
    if isinstance(field.default, int) and not isinstance(field.default, bool) and field.default:
        assert f"| {field.default} |" in PAGES


@pytest.mark.parametrize("name", CometSettings.__struct_fields__)
def test_a_setting_of_cometbft_is_explained(name: str) -> None:
    assert f"`comet.{name}`" in PAGES
