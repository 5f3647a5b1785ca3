"""Dataset, Federation and Proposal under the real operator, a real ledger and a real blob store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from talkoo_api.ledger.v1 import state_pb2
from talkoo_operator.federations import LAGGING_S
from talkoo_operator.invitation import Invitation, application_manifest, signed_application
from talkoo_operator.motion import Count, counted

from talkoo.client_async import AsyncClient
from talkoo.federation.beginning import ORGANIZATION_KEYS
from talkoo.membership import Membership
from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_core.errors import NotFound
from talkoo_core.signing import PrivateKey
from talkoo_runtime.keys import address_of, key_document, new_key
from talkoo_runtime.pki import create_authority, der_of
from talkoo_sim.operator_bed import NAMESPACE, eventually

pytestmark = pytest.mark.timeout(900)
SPACE = "objects"
NOW = "2026-01-01T00:00:00Z"


def manifest(kind: str, namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "talkoo.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def ready(status: dict[str, Any]) -> tuple[str, str]:
    return next(((c["status"], c["reason"]) for c in status.get("conditions", ()) if c["type"] == "Ready"), ("", ""))


@pytest.fixture(name="space")
def _space(space: Any) -> Iterator[Any]:
    space.namespace(SPACE, "alice")
    yield space
    space.cluster.kubectl("-n", SPACE, "delete", "tt,tds", "--all", "--timeout=100s", timeout_s=110.0)


@pytest.mark.federation
def test_a_dataset_is_stored_once_checked_and_trained_on(space: Any) -> None:
    space.cluster.apply(manifest("Dataset", SPACE, "stored", configMap={"name": "tiny", "key": "tiny.txt"}))
    status = space.until(SPACE, "stored", lambda s: ready(s)[0] == "True", kind="dataset")
    wanted = hashlib.sha256(b"data").hexdigest()
    assert (status["sha256"], status["bytes"], status["fileName"]) == (wanted, 4, "tiny.txt")

    space.cluster.apply(manifest("Dataset", SPACE, "named", sha256=wanted, fileName="other.txt"))
    assert space.until(SPACE, "named", lambda s: ready(s)[0] == "True", kind="dataset")["bytes"] == 4
    space.cluster.apply(manifest("Dataset", SPACE, "absent", sha256="0" * 64, fileName="x"))
    space.until(SPACE, "absent", lambda s: ready(s) == ("False", "NotStored"), kind="dataset")
    wrong = manifest("Dataset", SPACE, "wrong", sha256="1" * 64, configMap={"name": "tiny", "key": "tiny.txt"})
    space.cluster.apply(wrong)
    status = space.until(SPACE, "wrong", lambda s: ready(s) == ("False", "Refused"), kind="dataset")
    assert wanted in status["message"]

    space.submit(SPACE, "trains", data={"dataset": "named"})
    space.submit(SPACE, "hangs", data={"dataset": "absent"})
    task_id = space.until(SPACE, "trains", lambda s: s.get("taskId"))["taskId"]
    (task,) = [each for each in space.on_ledger("alice") if each.id == task_id]
    assert (task.spec.data.sha256, task.spec.data_name) == (wanted, "other.txt")
    space.until(SPACE, "hangs", lambda s: s.get("reason") == "DatasetNotReady")
    space.until(SPACE, "named", lambda s: s.get("usedBy") == ["trains"], kind="dataset")


@pytest.mark.federation
def test_the_federation_shows_what_the_ledger_says(space: Any) -> None:
    status = space.until(NAMESPACE, "federation", lambda s: ready(s)[0] == "True", kind="federation")
    assert (status["organization"], status["chainId"]) == ("north", "talkoo-bed-1")
    assert [(m["name"], m["state"], m["power"] > 0) for m in status["members"]] == [("north", "Member", True)]
    assert status["lagSeconds"] < LAGGING_S
    assert {c["name"] for c in status["certificates"]} == {"operator", "authority", "trusted"}
    assert status["account"]["stake"] == "1,000.0 TLK"
    space.until(NAMESPACE, "federation", lambda s: s["height"] > status["height"], kind="federation")
    space.cluster.apply(manifest("Federation", SPACE, "federation"))
    space.until(SPACE, "federation", lambda s: ready(s) == ("False", "NotOurs"), kind="federation")


def applied(bed: Any, name: str) -> None:
    """A newcomer with tokens for its fee applies."""
    owner, consensus = new_key(), new_key()

    async def apply() -> None:
        async with AsyncClient(bed.federation.home, user="alice") as alice:
            await alice.transfer(address_of(owner), UTLK_PER_TLK)
        async with AsyncClient(profile=alice.profile, key=owner) as newcomer:
            addresses = [address_of(key) for key in _keys(2)]
            await Membership(newcomer).apply(name, consensus, *addresses)

    asyncio.run(apply())


def _keys(count: int) -> list[PrivateKey]:
    return [new_key() for _ in range(count)]


@pytest.mark.federation
def test_a_proposal_is_signed_once_also_by_an_operator_that_dies_over_it(bed: Any) -> None:
    bed.namespace(SPACE, "alice")
    applied(bed, "fifth")
    dying = bed.operator("dying", module="talkoo_sim.dying_operator", arguments=["after-send"])
    eventually(lambda: dying.leads, "the operator leads")
    bed.cluster.apply(manifest("Proposal", NAMESPACE, "fifth", action="ApproveMember", organization="fifth"))
    assert dying.process.wait(60) == -9, dying.said()
    assert "transaction" in bed.status(NAMESPACE, "fifth", "proposal")["submission"]
    bed.operator("next", resync_s=5.0)
    status = bed.until(NAMESPACE, "fifth", lambda s: s.get("phase") == "Carried", kind="proposal")
    assert status["reason"] == "Admitted"
    assert status["height"] > 0
    assert "submission" not in status
    members = {
        m["name"]
        for m in bed.until(NAMESPACE, "federation", lambda s: len(s.get("members", ())) == 2, kind="federation")[
            "members"
        ]
    }
    assert members == {"north", "fifth"}

    bed.cluster.apply(manifest("Proposal", NAMESPACE, "nobody", action="ApproveMember", organization="nobody"))
    status = bed.until(NAMESPACE, "nobody", lambda s: s.get("phase") == "Refused", kind="proposal")
    assert "nobody has applied as 'nobody'" in status["message"]
    bed.cluster.apply(manifest("Proposal", NAMESPACE, "leave", action="LeaveFederation"))
    status = bed.until(NAMESPACE, "leave", lambda s: s.get("phase") == "Refused", kind="proposal")
    assert "last member" in status["message"]
    bed.cluster.apply(manifest("Proposal", SPACE, "elsewhere", action="LeaveFederation"))
    status = bed.until(SPACE, "elsewhere", lambda s: s.get("phase") == "Refused", kind="proposal")
    assert status["reason"] == "WrongNamespace"
    bed.cluster.kubectl("-n", NAMESPACE, "delete", "prop", "--all")


def newcomer(bed: Any, name: str) -> tuple[dict[str, PrivateKey], bytes, dict[str, Any]]:
    """Its keys, its authority, and the Proposal that its cluster makes of an invitation."""
    home = bed.federation.home
    genesis, trust = (home / "genesis.json").read_text(), (home / "trust.pem").read_text()
    ends = dict.fromkeys(("ledger", "scheduler", "gateway"), "203.0.113.5:7443")
    invited = Invitation(federation="talkoo-bed", organization="north", genesis=genesis, trust=trust, **ends)
    keys, authority = {key: new_key() for key in ORGANIZATION_KEYS}, create_authority(name, datetime.now(UTC))
    signed = signed_application(invited, authority, keys, 0)
    owner = address_of(keys["owner"])
    proposal = yaml.safe_load(application_manifest(authority, owner, signed, "30.5 TLK"))
    proposal["metadata"]["namespace"] = NAMESPACE
    return keys, der_of(authority.certificate_pem), proposal


def trusted(bed: Any) -> list[bytes]:
    """Authorities (DER) that the cluster's services trust."""
    found = bed.cluster.get("-n", NAMESPACE, "configmap", "talkoo-federation")["data"]["trust.pem"]
    return [each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(found.encode())]


def account(bed: Any, address: str) -> Any:
    """As the ledger has it; an empty one where it has none."""

    async def ask() -> Any:
        async with AsyncClient(bed.federation.home, user="alice") as alice:
            try:
                return await alice.account(address)
            except NotFound:
                return state_pb2.Account()

    return asyncio.run(ask())


def organization(bed: Any, name: str) -> Any:
    async def ask() -> Any:
        async with AsyncClient(bed.federation.home, user="alice") as alice:
            return next((each for each in await alice.organizations() if each.name == name), None)

    return asyncio.run(ask())


@pytest.mark.federation
@pytest.mark.parametrize("point", ["after-record", "after-send"])
def test_a_newcomer_is_granted_once_and_admitted_though_operators_die_on_the_way(bed: Any, point: str) -> None:
    bed.namespace(SPACE, "alice")
    name = f"new-{point}"
    keys, authority, proposal = newcomer(bed, name)
    owner = address_of(keys["owner"])
    trust = (bed.federation.home / "trust.pem").read_text()
    metadata = {"name": "talkoo-federation", "namespace": NAMESPACE}
    bed.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"trust.pem": trust}})
    bed.cluster.apply(proposal)
    for number in range(1 if point == "after-record" else 3):
        # One transaction each at most: the grant, the application, the approval.
        dying = bed.operator(f"dying-{number}", module="talkoo_sim.dying_operator", arguments=[point], resync_s=5.0)
        assert dying.process.wait(90) == -9, dying.said()
        if organization(bed, name):
            break
    bed.operator("next", resync_s=5.0)
    status = bed.until(NAMESPACE, f"admit-{name}", lambda s: s.get("phase") == "Carried", kind="proposal")
    assert (status["reason"], status["grant"]["height"] > 0) == ("Admitted", True)
    assert "transaction" not in status["grant"]
    assert account(bed, owner).balance_utlk == 30_500_000 - 100, "one grant, less the fee of its application"
    member = organization(bed, name)
    assert (member.owner, member.authority) == (owner, authority)
    eventually(lambda: authority in trusted(bed), "its authority is trusted")
    assert len(trusted(bed)) >= len(x509.load_pem_x509_certificates(trust.encode())) + 1
    proposal["metadata"]["name"] = "again"
    bed.cluster.apply(proposal)
    status = bed.until(NAMESPACE, "again", lambda s: s.get("phase") == "Carried", kind="proposal")
    assert "is a member already" in status["message"]
    assert account(bed, owner).balance_utlk == 30_500_000 - 100
    bed.cluster.kubectl("-n", NAMESPACE, "delete", "prop", "--all")


def paid(bed: Any, *addresses: str) -> None:
    async def pay() -> None:
        async with AsyncClient(bed.federation.home, user="alice") as alice:
            for address in addresses:
                await alice.transfer(address, UTLK_PER_TLK)

    asyncio.run(pay())


@pytest.mark.federation
def test_who_has_joined_bonds_once_also_when_its_operator_dies_over_it(bed: Any) -> None:
    bed.namespace(SPACE, "bob")
    keys, _, proposal = newcomer(bed, "joins")
    member = bed.operator("admits", resync_s=5.0)
    bed.cluster.apply(proposal)
    bed.until(NAMESPACE, "admit-joins", lambda s: s.get("phase") == "Carried", kind="proposal")
    member.stop()
    bed.cluster.kubectl("-n", NAMESPACE, "delete", "federation,proposal", "--all")
    paid(bed, address_of(keys["scheduler"]))
    key = bed.folder / "joins.key"
    key.write_text(key_document(keys["owner"].seed))
    key.chmod(0o600)
    settings = {"organization": "joins", "owner_key": str(key), "stake": "25 TLK", "service_balance": "1 TLK"}
    paid(bed, address_of(keys["validator"]))
    dying = bed.operator("dying", module="talkoo_sim.dying_operator", arguments=["after-send"], **settings)
    assert dying.process.wait(90) == -9, dying.said()
    assert "transaction" in bed.status(NAMESPACE, "federation", "federation")["joining"]
    bed.operator("joins", resync_s=5.0, **settings)
    status = bed.until(NAMESPACE, "federation", lambda s: s.get("joining", {}).get("bonded"), kind="federation")
    assert status["joining"]["bonded"] == "25.0 TLK"
    assert "transaction" not in status["joining"]
    assert organization(bed, "joins").stake_utlk == 25 * UTLK_PER_TLK
    owner = account(bed, address_of(keys["owner"]))
    assert owner.nonce == 2, "its application and one bond"
    assert owner.balance_utlk >= 30_500_000 - 25 * UTLK_PER_TLK - 2 * 100, "less than that was not left; fees come in"
    bed.cluster.kubectl("-n", NAMESPACE, "delete", "federation", "--all")


@pytest.mark.parametrize(
    ("changes", "phase", "reason"),
    [
        ({}, "Open", "Voting"),
        ({"member": True, "open": False}, "Carried", "Admitted"),
        ({"open": False}, "Expired", "ApplicationExpired"),
    ],
)
def test_an_approval_is_open_until_it_is_decided(changes: dict[str, Any], phase: str, reason: str) -> None:
    base = {"name": "fifth", "approvals": ("north",), "power_for": 10, "power_total": 30, "open": True, "member": False}
    status = counted({}, Count(**base | changes), 1, NOW)
    assert (status["phase"], status["reason"]) == (phase, reason)
    if phase == "Open":
        assert (status["powerFor"], status["powerNeeded"], status["powerTotal"]) == (10, 21, 30)
        assert "21 are needed" in status["message"]
