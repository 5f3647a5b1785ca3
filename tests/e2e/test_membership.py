"""`talkoo member` in a real federation: an organization applies, is admitted by the others, and leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.federation
FIFTH = "fifth"


def test_an_organization_applies_is_approved_changes_its_key_and_leaves(home: Any, tmp_path: Path) -> None:
    keys = {name: tmp_path / f"{name}.key" for name in ("consensus", "scheduler", "validator", "next")}
    addresses = {name: home.ok("member", "new-key", str(path)).split()[-1] for name, path in keys.items()}
    apply = ["member", "apply", FIFTH, "--consensus-key", str(keys["consensus"])]
    services = ["--scheduler", addresses["scheduler"], "--validator", addresses["validator"]]
    assert "has applied" in home.ok(*apply, *services)
    assert f"{FIFTH} has applied in block" in home.ok("member")
    for organization in ("north", "east", "south"):
        assert f"{FIFTH} is approved" in home.ok("member", "approve", FIFTH, user=organization)
    members = {each["name"]: each for each in home.json("member")}
    assert members[FIFTH]["owner"] == members[FIFTH]["owner"].strip()
    assert len(members) == 5
    assert "has applied" not in home.ok("member")
    assert "votes from block" in home.ok("member", "rotate-key", FIFTH, "--consensus-key", str(keys["next"]))
    assert "has left" in home.ok("member", "leave", FIFTH, "--yes")
    assert "left in block" in home.ok("member")


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["approve"], "name the organization", 2),
        (["approve", "nobody"], "nobody has applied as 'nobody'", 3),
        (["apply", "sixth"], "apply takes --consensus-key", 2),
        (["rotate-key", "north", "--consensus-key", "/nowhere/key"], "/nowhere/key", 3),
        (["leave", "north", "--yes"], "north is its owner's", 6),
    ],
)
def test_what_cannot_be_done_is_one_line(home: Any, arguments: list[str], said: str, status: int) -> None:
    answer = home.run("member", *arguments)
    assert said in answer.error_line()
    assert answer.status == status
