"""The local federation before anything runs: its plan, its files, and what doctor says of them."""

from __future__ import annotations

import datetime
import json
import stat
from itertools import chain
from pathlib import Path

import msgspec
import pytest
from talkoo_agent.settings import AgentSettings
from talkoo_gateway.settings import GatewaySettings
from talkoo_ledger.genesis import check_genesis, parse_genesis
from talkoo_ledger.settings import LedgerSettings
from talkoo_scheduler.settings import SchedulerSettings
from talkoo_validator.settings import ValidatorSettings

from talkoo.federation.doctor import OK, WARNING, federation_checks, machine_checks, servers
from talkoo.federation.plan import PLAN_FILE, default_plan, load_plan, with_ports
from talkoo.federation.provision import Provisioned, provision
from talkoo.profile import load_profile
from talkoo_core.errors import Corrupt, InvalidInput
from talkoo_runtime import pki
from talkoo_runtime.keys import load_key
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_runtime.settings import load_settings

SETTINGS: dict[str, type[ServiceSettings]] = {
    "ledger": LedgerSettings,
    "scheduler": SchedulerSettings,
    "validator": ValidatorSettings,
    "gateway": GatewaySettings,
    "agent": AgentSettings,
}


@pytest.fixture
def made(tmp_path: Path) -> Provisioned:
    return provision(tmp_path / "home")


def files(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


def test_four_organizations_and_six_nodes_of_different_speed() -> None:
    plan = default_plan()
    assert len(plan.organizations) == 4
    assert len(plan.node_names()) == 6
    duties = [node.duty for organization in plan.organizations for node in organization.nodes]
    assert len(set(duties)) == 6
    assert max(duties) >= 4 * min(duties)
    assert all(node.forge_from_segment == -1 for organization in plan.organizations for node in organization.nodes)


def test_a_forger_is_named_or_refused() -> None:
    plan = default_plan({"west-1": 2})
    forging = [n for o in plan.organizations for n in o.nodes if n.forge_from_segment >= 0]
    assert [(n.name, n.forge_from_segment) for n in forging] == [("west-1", 2)]
    with pytest.raises(InvalidInput, match="there is no node 'west-9'; the nodes are north-1"):
        default_plan({"west-9": 1})


def test_each_server_has_a_port_of_its_own(tmp_path: Path) -> None:
    plan = with_ports(default_plan(), tmp_path)
    ports = [port for _, port in servers(plan)] + [plan.etcd_peer_port] + [o.http_port for o in plan.organizations]
    assert len(set(ports)) == len(ports) == 1 + 16 + 6 + 1 + 4


def test_a_second_provisioning_changes_nothing(made: Provisioned) -> None:
    before = files(made.home)
    again = provision(made.home)
    assert files(made.home) == before
    assert again == made


def test_every_service_can_read_its_settings(made: Provisioned) -> None:
    for service in made.services:
        settings = load_settings(SETTINGS[service.role], service.settings, {})
        assert (settings.name, settings.organization) == (service.name, service.organization)
    assert len(made.services) == 22


def test_with_metrics_every_process_serves_them_where_prometheus_is_told_to_look(made: Provisioned) -> None:
    before = {service.name: service.settings.read_bytes() for service in made.services}
    with_metrics = provision(made.home, metrics=True)
    listens = {
        service.name: load_settings(SETTINGS[service.role], service.settings, {}).metrics_listen
        for service in with_metrics.services
    }
    plan = made.plan
    taken = {port for _, port in servers(plan)} | {plan.etcd_peer_port} | {o.http_port for o in plan.organizations}
    ports = {int(listen.rpartition(":")[2]) for listen in listens.values()}
    assert len(ports) == len(listens) == 22
    assert not ports & taken
    told = json.loads((made.home / "prometheus-targets.json").read_text())
    assert {group["labels"]["process"]: group["targets"] for group in told} == {n: [at] for n, at in listens.items()}
    assert {group["labels"]["job"] for group in told} == {f"talkoo-{role}" for role in SETTINGS}
    provision(made.home)
    assert {service.name: service.settings.read_bytes() for service in made.services} == before


def test_the_genesis_is_valid_and_nobody_s_key_is_anybody_else_s(made: Provisioned) -> None:
    genesis = parse_genesis((made.home / "genesis.json").read_bytes())
    check_genesis(genesis)
    keys = list(
        chain.from_iterable(
            (o.owner_key, o.consensus_key, o.scheduler_key, o.validator_key, *o.node_keys)
            for o in genesis.organizations
        )
    )
    assert len(set(keys)) == len(keys) == 4 * 4 + 6


def test_secrets_are_readable_by_their_owner_only(made: Provisioned) -> None:
    secrets = [*made.home.rglob("*.key"), *made.home.rglob("private-key.pem")]
    assert len(secrets) > 30
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)


def test_users_have_profiles_and_the_first_is_the_default(made: Provisioned) -> None:
    default, bob = load_profile(made.home, None), load_profile(made.home, "bob")
    assert default.organization == "north"
    assert bob.organization == "south"
    assert load_key(Path(bob.account_key)) != load_key(Path(default.account_key))


def test_certificates_near_their_end_are_issued_anew(made: Provisioned, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = made.services[0].folder / pki.CERTIFICATE_FILE
    before = certificate.read_bytes()
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=pki.CERTIFICATE_DAYS - 5)
    monkeypatch.setattr(pki, "_now", lambda: later)
    provision(made.home)
    assert certificate.read_bytes() != before
    assert not pki.needs_renewal(certificate.read_bytes(), later)


def test_a_damaged_plan_is_said_plainly(made: Provisioned) -> None:
    (made.home / PLAN_FILE).write_text("{")
    with pytest.raises(Corrupt, match="is damaged"):
        load_plan(made.home)


def test_plans_come_back_from_their_file(made: Provisioned) -> None:
    assert load_plan(made.home) == made.plan
    assert json.loads((made.home / PLAN_FILE).read_text()) == msgspec.to_builtins(made.plan)


async def test_doctor_tells_an_absent_federation_from_one_that_does_not_run(made: Provisioned, tmp_path: Path) -> None:
    (absent,) = await federation_checks(tmp_path / "nowhere", None)
    assert (absent.state, absent.remedy) == (WARNING, "start one: talkoo up")
    (stopped,) = await federation_checks(made.home, None)
    assert (stopped.state, stopped.remedy) == (WARNING, "start it: talkoo up")


def test_doctor_looks_at_the_machine(tmp_path: Path) -> None:
    checks = {check.name: check for check in machine_checks(tmp_path)}
    assert set(checks) == {"python", "torch", "gpu", "etcd", "disk", "memory"}
    assert checks["etcd"].state == OK
    assert checks["python"].state == OK
