"""docs/accountability.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from talkoo_consensus import evidence, types, verify
from talkoo_ledger import store, transcripts
from talkoo_ledger.forensics import main

DOCS = (Path(__file__).parents[2] / "docs" / "accountability.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", DOCS, re.MULTILINE))


def test_every_bound_stands_there_with_its_value() -> None:
    names = {
        name: value
        for module in (evidence, verify, transcripts)
        for name, value in vars(module).items()
        if re.fullmatch(r"MAX_[A-Z_]+|VOTES_REMEMBERED", name) and isinstance(value, int)
    }
    names |= {"MAX_EVIDENCE_BYTES": types.MAX_EVIDENCE_BYTES, "TRANSCRIPTS_KEPT": store.TRANSCRIPTS_KEPT}
    for elsewhere in ("MAX_AGE_NS", "MAX_EXTENSION_BYTES"):
        del names[elsewhere]
    assert {name: int(value) for name, value in ROWS.items()} == names


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_and_option_stands_there(name: str) -> None:
    assert f"forensics {name}" in DOCS
    options = [each for each in main.commands[name].params if isinstance(each, click.Option)]
    assert all(option.opts[0] in DOCS for option in options)


def test_the_number_of_published_signatures_is_that_of_the_file() -> None:
    published = json.loads((Path(__file__).parent / "signatures.json").read_text())
    cases = sum(len(each) for each in published.values() if isinstance(each, list))
    assert f"{cases:,} published cases" in DOCS


def test_the_age_of_evidence_is_the_one_named_there() -> None:
    assert evidence.EvidenceParams.within_unbonding(600).max_age_blocks == 600 - 3
    assert "`unbonding_blocks − 3`" in DOCS
