"""docs/networking.md says what the code does: every setting of the network, and every limit with its value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from talkoo_ledger import (
    addresses,
    answers,
    asks,
    collecting,
    conversation,
    gossip,
    header_trust,
    intake,
    peers,
    snapshot_sync,
    streams,
    sync,
)
from talkoo_ledger.settings import LedgerSettings

DOCS = (Path(__file__).parents[2] / "docs" / "networking.md").read_text()
MODULES = (
    addresses,
    answers,
    asks,
    collecting,
    conversation,
    gossip,
    header_trust,
    intake,
    peers,
    snapshot_sync,
    streams,
    sync,
)
ELSEWHERE = {
    "MAX_HEIGHT",
    "MAX_ENDPOINT_LENGTH",
    "MAX_VALIDATORS",
    "MAX_CHUNKS",
    "MAX_BLOCK_BYTES",
    "MAX_VERIFIED_VOTES",
    "MAX_PROPOSALS_WITHOUT_BLOCK",
    "MAX_SEEN_PROPOSALS",
    "MAX_ROUNDS_AHEAD",
    "MAX_TOTAL_POWER",
}
"""Of a form or of consensus: not the operator's concern."""


def rows() -> list[tuple[list[str], list[float]]]:
    """Names and values of the limits."""
    table = DOCS.split("## Limits")[1].split("## ")[0]
    found = []
    for line in table.splitlines():
        if line.startswith("| `"):
            names, values = line.split("|")[1:3]
            found.append((re.findall(r"`(\w+)`", names), [float(v.replace(",", "")) for v in values.split(", ")]))
    return found


def value_of(name: str) -> Any:
    return next(getattr(module, name) for module in MODULES if hasattr(module, name))


@pytest.mark.parametrize(("names", "values"), rows())
def test_a_limit_has_the_value_that_the_page_says(names: list[str], values: list[float]) -> None:
    assert [float(value_of(name)) for name in names] == values


def test_every_limit_of_the_network_stands_on_the_page() -> None:
    limits = {name for module in MODULES for name in vars(module) if name.startswith(("MAX_", "PACE_", "ANSWER"))}
    limits = {name for name in limits if name.isupper()}
    assert not [name for name in sorted(limits - ELSEWHERE) if f"`{name}`" not in DOCS]
    assert not [name for name in ELSEWHERE if f"`{name}`" in DOCS]


def test_every_name_that_the_page_gives_exists() -> None:
    for name in set(re.findall(r"`([A-Z][A-Z_]+)`", DOCS)):
        value_of(name)


@pytest.mark.parametrize(
    "name",
    [
        "peers",
        "outbound_only",
        "advertise",
        "snapshot_interval_blocks",
        "snapshot_sync_blocks",
        "trust_height",
        "trust_hash",
        "retain_blocks",
    ],
)
def test_a_setting_stands_there_with_its_default(name: str) -> None:
    fields = LedgerSettings.__struct_fields__[-len(LedgerSettings.__struct_defaults__) :]
    default = dict(zip(fields, LedgerSettings.__struct_defaults__, strict=True))[name]
    row = next(line for line in DOCS.splitlines() if line.startswith("| `") and f"`{name}`" in line)
    said = {"none": ((), "", 0), "false": (False,), "`listen`": ("",)}
    words = row.split("|")[2].strip()
    assert default in said.get(words, (int(words) if words.isdecimal() else None,))
