"""A namespace is an account: what it may spend, in which order, and that it gets at nothing of another's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from talkoo_sim.operator_bed import account_secret, eventually, waits

pytestmark = [pytest.mark.federation, pytest.mark.timeout(900)]


@pytest.fixture
def spaces(space: Any) -> Iterator[Any]:
    """Namespaces of alice, of bob with a limit of 3 TLK, of carol with 10 TLK, and one that has no account."""
    space.namespace("of-alice", "alice")
    space.namespace("of-bob", "bob", limit="3 TLK")
    space.namespace("of-carol", "carol")
    space.namespace("of-nobody")
    yield space
    for name in ("of-alice", "of-bob", "of-carol", "of-nobody"):
        space.cluster.kubectl("-n", name, "delete", "tt", "--all", "--timeout=100s", timeout_s=110.0)


def test_each_pays_from_its_own_account_and_who_has_none_is_told(spaces: Any) -> None:
    spaces.submit("of-alice", "mine")
    spaces.submit("of-carol", "mine", model={"name": "carols"})
    spaces.submit("of-nobody", "mine", model={"name": "nobodys"})
    accounts = {name: spaces.until(name, "mine", waits)["submission"]["account"] for name in ("of-alice", "of-carol")}
    assert accounts["of-alice"] != accounts["of-carol"]
    assert {t.owner for t in spaces.on_ledger("carol") if t.spec.name == "mine"} == {accounts["of-carol"]}
    status = spaces.until("of-nobody", "mine", lambda s: s.get("reason") == "NoAccount")
    assert "lacks the Secret talkoo-account" in status["message"]


def test_an_account_that_was_exchanged_is_not_spent_any_more(spaces: Any) -> None:
    """A namespace that is made anew under an old name must not pay with its predecessor's key."""
    spaces.submit("of-nobody", "before")
    spaces.until("of-nobody", "before", lambda s: s.get("reason") == "NoAccount")
    spaces.cluster.apply(account_secret("of-nobody", spaces.federation.account_key("alice")))
    first = spaces.until("of-nobody", "before", waits)["submission"]["account"]
    spaces.cluster.apply(account_secret("of-nobody", spaces.federation.account_key("carol")))
    spaces.submit("of-nobody", "after", model={"name": "after"})
    assert spaces.until("of-nobody", "after", waits)["submission"]["account"] != first
    spaces.cluster.kubectl("-n", "of-nobody", "delete", "secret", "talkoo-account")
    spaces.submit("of-nobody", "gone", model={"name": "gone"})
    spaces.until("of-nobody", "gone", lambda s: s.get("reason") == "NoAccount")
    spaces.cluster.apply(account_secret("of-nobody", spaces.federation.account_key("alice")))


def test_configmaps_and_datasets_of_another_namespace_are_not_there(spaces: Any) -> None:
    spaces.cluster.kubectl("-n", "of-carol", "delete", "configmap", "tiny")
    spaces.submit("of-carol", "reads", model={"name": "reads"})
    status = spaces.until("of-carol", "reads", lambda s: s.get("reason") == "InputsMissing")
    assert "tiny" in status["message"]
    dataset = {
        "apiVersion": "talkoo.dev/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": "alices", "namespace": "of-alice"},
        "spec": {"configMap": {"name": "tiny", "key": "tiny.txt"}},
    }
    spaces.cluster.apply(dataset)
    spaces.until("of-alice", "alices", lambda s: s.get("sha256"), kind="dataset")
    spaces.submit("of-bob", "reads", data={"dataset": "alices"}, model={"name": "bobs"})
    spaces.until("of-bob", "reads", lambda s: s.get("reason") == "InputsMissing")


def test_a_limit_holds_what_a_namespace_spends_and_priority_says_who_is_next(spaces: Any) -> None:
    for name, budget in (("a", "1 TLK"), ("b", "1 TLK")):
        spaces.submit("of-bob", name, budget=budget, model={"name": f"bob-{name}"})
        spaces.until("of-bob", name, waits)
    spaces.submit("of-bob", "hopeless", budget="4 TLK", priority=9, model={"name": "bob-h"})
    status = spaces.until("of-bob", "hopeless", lambda s: s.get("reason") == "QuotaExceeded")
    assert "more than the 3.0 TLK" in status["message"]
    spaces.submit("of-bob", "urgent", budget="2 TLK", priority=5, model={"name": "bob-u"})
    status = spaces.until("of-bob", "urgent", lambda s: s.get("reason") == "QuotaExceeded")
    assert "2.0 TLK spent or in escrow" in status["message"]
    spaces.submit("of-bob", "patient", budget="1 TLK", priority=1, model={"name": "bob-p"})
    status = spaces.until("of-bob", "patient", lambda s: s.get("reason") == "WaitsForPriority")
    assert "urgent has a higher priority" in status["message"]
    spaces.cluster.kubectl("-n", "of-bob", "delete", "tt", "a", "--timeout=60s")
    spaces.until("of-bob", "urgent", waits)
    assert spaces.status("of-bob", "patient")["reason"] != "WaitingForPlacement"
    held = sum(t.escrow_utlk + t.spent_utlk for t in spaces.on_ledger("bob"))
    assert held == 3_000_000, "exactly the limit"


def test_tasks_that_come_together_stay_within_the_limit(spaces: Any) -> None:
    for number in range(8):
        spaces.submit("of-bob", f"many-{number}", model={"name": f"many-{number}"})
    for number in range(8):
        spaces.until("of-bob", f"many-{number}", lambda s: waits(s) or s.get("reason") == "QuotaExceeded")
    assert sum(t.escrow_utlk + t.spent_utlk for t in spaces.on_ledger("bob")) == 3_000_000


def test_the_federations_limit_is_for_who_has_none_of_its_own(spaces: Any) -> None:
    change = json.dumps({"spec": {"spendLimit": "0.5 TLK"}})
    spaces.patch("talkoo", "federation", change, kind="federation")
    eventually(
        lambda: (
            spaces.status("talkoo", "federation", "federation").get("observedGeneration")
            == spaces.get("talkoo", "federation", "federation")["metadata"]["generation"]
        ),
        "the operator has read it",
    )
    spaces.submit("of-alice", "dear", model={"name": "dear"})
    status = spaces.until("of-alice", "dear", lambda s: s.get("reason") == "QuotaExceeded")
    assert "0.5 TLK" in status["message"]
    spaces.patch("talkoo", "federation", json.dumps({"spec": {"spendLimit": None}}), kind="federation")
    spaces.until("of-alice", "dear", waits)
