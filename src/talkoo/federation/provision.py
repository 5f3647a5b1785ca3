"""Keys, certificates, genesis and settings of a local federation, written once into its home folder.

Nothing that exists is made again, except certificates near their end: a second `talkoo up` finds the same accounts, the
same chain and the same ports.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from talkoo.federation.beginning import ORGANIZATION_KEYS, account_entry, genesis_document, organization_entry
from talkoo.federation.plan import (
    PLAN_FILE,
    FederationPlan,
    NodePlan,
    OrganizationPlan,
    UserPlan,
    default_plan,
    load_plan,
    plan_json,
    ports_behind,
    with_ports,
)
from talkoo.federation.prometheus import Target, write_prometheus_settings
from talkoo_core.errors import Internal
from talkoo_core.ids import address_of_key
from talkoo_core.signing import PrivateKey
from talkoo_runtime.disk import write_atomic
from talkoo_runtime.keys import create_key, load_key
from talkoo_runtime.pki import (
    CERTIFICATE_FILE,
    KEY_FILE,
    Authority,
    ensure_authority,
    ensure_certificate,
    identity_uri,
    trust_bundle,
)

GENESIS_FILE = "genesis.json"
TRUST_FILE = "trust.pem"
PROFILE_FILE = "profile.toml"
SERVICE_BALANCE_UTLK = 5_000_000
"""For the fees of schedulers and validators."""
ENDORSEMENT_DOMAIN = b"talkoo/node/v1\n"
HOST = "127.0.0.1"
EMPTY_BLOCK_INTERVAL_MS = 1000
CONTROL_ROLES = ("ledger", "scheduler", "validator", "gateway")


@dataclass(frozen=True, slots=True)
class Service:
    """One child process of the federation."""

    role: str
    name: str
    organization: str
    module: str
    settings: Path
    folder: Path


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A home folder ready to start."""

    home: Path
    plan: FederationPlan
    services: tuple[Service, ...]
    etcd_certificate: Path
    etcd_key: Path
    trust_bundle: Path

    @property
    def etcd_endpoint(self) -> str:
        return f"{HOST}:{self.plan.etcd_port}"


def provision(home: Path, plan: FederationPlan | None = None, *, metrics: bool = False) -> Provisioned:
    """Make (or complete) a home folder. An existing plan wins over `plan`.

    `metrics`: every process serves them until the next start, and `prometheus.yml` tells Prometheus where.
    """
    home.mkdir(parents=True, exist_ok=True)
    found = load_plan(home)
    if found is None:
        found = with_ports(plan or default_plan(), home)
        write_atomic(home / PLAN_FILE, plan_json(found).encode())
    return _Provisioner(home, found, metrics).run()


class _Provisioner:
    def __init__(self, home: Path, plan: FederationPlan, metrics: bool) -> None:
        self.home = home.resolve()
        self.plan = plan
        count = (len(CONTROL_ROLES) * len(plan.organizations) + len(plan.node_names())) if metrics else 0
        self.metrics_ports = iter(ports_behind(plan, count))
        self.targets: list[Target] = []
        self.trust = self.home / TRUST_FILE
        self.authorities: dict[str, Authority] = {}

    def run(self) -> Provisioned:
        for organization in self.plan.organizations:
            folder = self.organization_folder(organization.name)
            self.authorities[organization.name] = ensure_authority(folder / "authority", organization.name)
        bundle = trust_bundle(list(self.authorities.values()))
        if not self.trust.exists() or self.trust.read_bytes() != bundle:
            write_atomic(self.trust, bundle)
        self.write_genesis()
        services = [service for o in self.plan.organizations for service in self.organization_services(o)]
        if self.targets:
            write_prometheus_settings(self.home, self.targets)
        for index, user in enumerate(self.plan.users):
            self.write_user(user, default=index == 0)
        for organization in self.plan.organizations:
            self.write_owner(organization)
        etcd = self.home / "etcd"
        first = self.plan.organizations[0].name
        self.certify(etcd, first, "etcd", "etcd")
        return Provisioned(self.home, self.plan, tuple(services), etcd / CERTIFICATE_FILE, etcd / KEY_FILE, self.trust)

    def organization_folder(self, name: str) -> Path:
        return self.home / "organizations" / name

    def node_folder(self, organization: str, node: NodePlan) -> Path:
        return self.organization_folder(organization) / "nodes" / node.name

    def certify(self, folder: Path, organization: str, role: str, name: str) -> None:
        ensure_certificate(
            self.authorities[organization], folder, identity_uri(self.plan.name, organization, role, name)
        )

    def organization_key(self, organization: str, which: str) -> PrivateKey:
        return _key(self.organization_folder(organization) / "keys" / f"{which}.key")

    def node_key(self, organization: str, node: NodePlan) -> PrivateKey:
        return _key(self.node_folder(organization, node) / "account.key")

    def user_key(self, user: UserPlan) -> PrivateKey:
        return _key(self.home / "users" / user.name / "account.key")

    def write_genesis(self) -> None:
        """The genesis file names every key and every token of the beginning."""
        path = self.home / GENESIS_FILE
        if path.exists():
            return
        organizations, accounts = [], []
        for plan in self.plan.organizations:
            keys = {which: self.organization_key(plan.name, which) for which in ORGANIZATION_KEYS}
            node_keys = {node.name: self.node_key(plan.name, node) for node in plan.nodes}
            organizations.append(organization_entry(plan.name, keys, plan.stake_utlk, node_keys.values()))
            accounts.append(account_entry(keys["owner"], plan.balance_utlk, plan.name))
            accounts.append(account_entry(keys["scheduler"], SERVICE_BALANCE_UTLK, f"{plan.name}-scheduler"))
            accounts.append(account_entry(keys["validator"], SERVICE_BALANCE_UTLK, f"{plan.name}-validator"))
            accounts += [account_entry(node_keys[node.name], node.balance_utlk, node.name) for node in plan.nodes]
        accounts += [account_entry(self.user_key(user), user.balance_utlk, user.name) for user in self.plan.users]
        genesis = genesis_document(self.plan.chain_id, time.time_ns(), organizations, accounts)
        write_atomic(path, (json.dumps(genesis, indent=2) + "\n").encode())

    def organization_services(self, organization: OrganizationPlan) -> list[Service]:
        services = [
            self.service("ledger", organization, organization.ledger_port, self.ledger_settings(organization)),
            self.service("scheduler", organization, organization.scheduler_port, self.scheduler_settings(organization)),
            self.service("validator", organization, organization.validator_port, self.validator_settings(organization)),
            self.service("gateway", organization, organization.gateway_port, self.gateway_settings(organization)),
        ]
        return services + [self.agent(organization, node) for node in organization.nodes]

    def ledger_settings(self, organization: OrganizationPlan) -> dict[str, object]:
        return {
            "genesis": str(self.home / GENESIS_FILE),
            "consensus_key": str(self.organization_folder(organization.name) / "keys" / "consensus.key"),
            "empty_block_interval_ms": EMPTY_BLOCK_INTERVAL_MS,
            "peers": [
                {"organization": other.name, "endpoint": f"{HOST}:{other.ledger_port}"}
                for other in self.plan.organizations
                if other.name != organization.name
            ],
        }

    def scheduler_settings(self, organization: OrganizationPlan) -> dict[str, object]:
        return {
            "ledger": f"{HOST}:{organization.ledger_port}",
            "etcd": [f"{HOST}:{self.plan.etcd_port}"],
            "account_key": str(self.organization_folder(organization.name) / "keys" / "scheduler.key"),
        }

    def validator_settings(self, organization: OrganizationPlan) -> dict[str, object]:
        return {
            "ledger": f"{HOST}:{organization.ledger_port}",
            "blobs": self.blobs_url(),
            "account_key": str(self.organization_folder(organization.name) / "keys" / "validator.key"),
        }

    def gateway_settings(self, organization: OrganizationPlan) -> dict[str, object]:
        return {
            "http_listen": f"{HOST}:{organization.http_port}",
            "ledger": f"{HOST}:{organization.ledger_port}",
            "scheduler": f"{HOST}:{organization.scheduler_port}",
            "validator": f"{HOST}:{organization.validator_port}",
            "blobs": self.blobs_url(),
        }

    def agent(self, organization: OrganizationPlan, node: NodePlan) -> Service:
        folder = self.node_folder(organization.name, node)
        node_id = address_of_key(self.node_key(organization.name, node).public.raw)
        statement = ENDORSEMENT_DOMAIN + f"{self.plan.chain_id}\n{node_id}".encode()
        settings = {
            "ledger": f"{HOST}:{organization.ledger_port}",
            "scheduler": f"{HOST}:{organization.scheduler_port}",
            "blobs": self.blobs_url(),
            "account_key": str(folder / "account.key"),
            "duty": node.duty,
            "memory_bytes": node.memory_bytes,
            "price_utlk_per_gflop": node.price_utlk_per_gflop,
            "request_price_utlk": node.request_price_utlk,
            "stake_utlk": node.stake_utlk,
            "power_mw": node.power_mw,
            "endorsement": self.organization_key(organization.name, "owner").sign(statement).hex(),
            "forge_from_segment": node.forge_from_segment,
        }
        return self.service("agent", organization, node.port, settings, node)

    def blobs_url(self) -> str:
        return (self.home / "blobs").as_uri()

    def service(
        self,
        role: str,
        organization: OrganizationPlan,
        port: int,
        own: dict[str, object],
        node: NodePlan | None = None,
    ) -> Service:
        """Write the settings file of one process; `own` are the fields only its role has."""
        name = node.name if node else f"{organization.name}-{role}"
        folder = (
            self.node_folder(organization.name, node) if node else self.organization_folder(organization.name) / role
        )
        self.certify(folder, organization.name, role, name)
        settings = {
            "federation": self.plan.name,
            "organization": organization.name,
            "name": name,
            "listen": f"{HOST}:{port}",
            "state_dir": str(folder / "state"),
            "certificate": str(folder / CERTIFICATE_FILE),
            "private_key": str(folder / KEY_FILE),
            "trust_bundle": str(self.trust),
            "traces_dir": str(self.home / "traces"),
            **own,
        }
        metrics_port = next(self.metrics_ports, None)
        if metrics_port is not None:
            address = f"{HOST}:{metrics_port}"
            settings["metrics_listen"] = address
            self.targets.append(Target(role, organization.name, name, address))
        path = folder / "settings.toml"
        write_atomic(path, _toml(settings).encode())
        return Service(role, name, organization.name, f"talkoo_{role}", path, folder)

    def write_user(self, user: UserPlan, *, default: bool) -> None:
        """A user's key, certificate and profile; the first user's profile is also the home's own."""
        self.user_key(user)
        organization = next(o for o in self.plan.organizations if o.name == user.organization)
        folder = self.home / "users" / user.name
        profile = self.write_profile(user.name, organization, folder / "account.key")
        if default:
            write_atomic(self.home / PROFILE_FILE, profile)

    def write_owner(self, organization: OrganizationPlan) -> None:
        """Whoever owns an organization acts `--as` its name, with the owner's key."""
        if all(user.name != organization.name for user in self.plan.users):
            key = self.organization_folder(organization.name) / "keys" / "owner.key"
            self.write_profile(organization.name, organization, key)

    def write_profile(self, name: str, organization: OrganizationPlan, account_key: Path) -> bytes:
        """Certificate and profile of somebody who speaks to this organization's gateway; returns the profile."""
        folder = self.home / "users" / name
        self.certify(folder, organization.name, "user", name)
        profile = {
            "federation": self.plan.name,
            "organization": organization.name,
            "gateway": f"{HOST}:{organization.gateway_port}",
            "http": f"https://{HOST}:{organization.http_port}",
            "trust_bundle": str(self.trust),
            "certificate": str(folder / CERTIFICATE_FILE),
            "private_key": str(folder / KEY_FILE),
            "account_key": str(account_key),
        }
        content = _toml(profile).encode()
        write_atomic(folder / PROFILE_FILE, content)
        return content


def _key(path: Path) -> PrivateKey:
    return load_key(path) if path.exists() else create_key(path)


def _toml(settings: Mapping[str, object]) -> str:
    """The few TOML shapes our settings have: JSON scalars and lists are TOML; tables of peers come last."""
    lines, tables = [], []
    for name, value in settings.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for entry in value:
                tables.append(f"\n[[{name}]]")
                tables += [f"{key} = {json.dumps(item)}" for key, item in entry.items()]
        elif isinstance(value, str | int | float | bool | list):
            lines.append(f"{name} = {json.dumps(value)}")
        else:
            raise Internal(f"the setting {name} has no TOML form")
    return "\n".join([*lines, *tables]) + "\n"
