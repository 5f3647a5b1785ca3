"""What a local federation consists of. Written once as `federation.json` in the home folder and kept."""

from __future__ import annotations

import json
import socket
import zlib
from pathlib import Path

import msgspec

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_core.errors import Corrupt, Exhausted, InvalidInput

FEDERATION_NAME = "talkoo-local"
PLAN_FILE = "federation.json"
MIB = 1024 * 1024
HONEST = -1
FIRST_PORT, LAST_PORT = 20_000, 32_000
"""Below the range from which the kernel lends ports to clients, so that a restart finds its ports free."""


class NodePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One machine with an agent. Several of them share this computer, each with its own part of its time."""

    name: str
    duty: float
    """Share of the processor's time the node takes, in (0, 1]: how nodes of different speed live on one machine."""
    memory_bytes: int
    price_utlk_per_gflop: int
    port: int = 0
    power_mw: int = 15_000
    """Declared draw at full load; counted only where neither NVML nor RAPL can tell."""
    request_price_utlk: int = 50_000
    stake_utlk: int = 20 * UTLK_PER_TLK
    balance_utlk: int = 30 * UTLK_PER_TLK
    forge_from_segment: int = HONEST
    """For demonstrations and tests: from this segment on the node makes its results up."""


class OrganizationPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member: its own keys and certificate authority, ledger node, scheduler, validator, gateway and nodes."""

    name: str
    nodes: list[NodePlan]
    stake_utlk: int = 1_000 * UTLK_PER_TLK
    balance_utlk: int = 1_000 * UTLK_PER_TLK
    ledger_port: int = 0
    scheduler_port: int = 0
    validator_port: int = 0
    gateway_port: int = 0
    http_port: int = 0


class UserPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A person with tokens and a certificate of an organization."""

    name: str
    organization: str
    balance_utlk: int


class FederationPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `talkoo up` provisions and starts."""

    name: str
    chain_id: str
    organizations: list[OrganizationPlan]
    users: list[UserPlan]
    etcd_port: int = 0
    etcd_peer_port: int = 0

    def node_names(self) -> list[str]:
        return [node.name for organization in self.organizations for node in organization.nodes]


def default_plan(forgers: dict[str, int] | None = None) -> FederationPlan:
    """Four organizations, six nodes of clearly different speed, two users.

    `forgers` maps a node's name to the first segment it forges. Raises InvalidInput for a name that is not there.
    """
    plan = FederationPlan(
        name=FEDERATION_NAME,
        chain_id=f"{FEDERATION_NAME}-1",
        organizations=[
            OrganizationPlan("north", [_node("north-1", 1.0, 1024, 1.0), _node("north-2", 0.6, 1024, 0.8)]),
            OrganizationPlan("east", [_node("east-1", 0.8, 1024, 0.9), _node("east-small", 0.2, 384, 0.15)]),
            OrganizationPlan("south", [_node("south-1", 0.5, 768, 0.75)]),
            OrganizationPlan("west", [_node("west-1", 0.9, 1024, 0.6)]),
        ],
        users=[UserPlan("alice", "north", 500 * UTLK_PER_TLK), UserPlan("bob", "south", 50 * UTLK_PER_TLK)],
    )
    return _with_forgers(plan, forgers or {})


def _node(name: str, duty: float, memory_mib: int, price_tlk: float) -> NodePlan:
    return NodePlan(name, duty, memory_mib * MIB, round(price_tlk * UTLK_PER_TLK))


def _with_forgers(plan: FederationPlan, forgers: dict[str, int]) -> FederationPlan:
    unknown = sorted(set(forgers) - set(plan.node_names()))
    if unknown:
        raise InvalidInput(f"there is no node {unknown[0]!r}; the nodes are {', '.join(plan.node_names())}")
    organizations = [
        msgspec.structs.replace(
            organization,
            nodes=[
                msgspec.structs.replace(node, forge_from_segment=forgers.get(node.name, node.forge_from_segment))
                for node in organization.nodes
            ],
        )
        for organization in plan.organizations
    ]
    return msgspec.structs.replace(plan, organizations=organizations)


def with_ports(plan: FederationPlan, home: Path) -> FederationPlan:
    """Give every server a free port. Where to begin looking depends on the folder, so that two homes seldom meet."""
    free = _FreePorts(FIRST_PORT + zlib.crc32(str(home).encode()) % (LAST_PORT - FIRST_PORT))
    organizations = [
        msgspec.structs.replace(
            organization,
            ledger_port=free.next(),
            scheduler_port=free.next(),
            validator_port=free.next(),
            gateway_port=free.next(),
            http_port=free.next(),
            nodes=[msgspec.structs.replace(node, port=free.next()) for node in organization.nodes],
        )
        for organization in plan.organizations
    ]
    return msgspec.structs.replace(plan, organizations=organizations, etcd_port=free.next(), etcd_peer_port=free.next())


class _FreePorts:
    """Walks the port range once, from a starting point, and hands out the ports nobody listens on."""

    def __init__(self, start: int) -> None:
        span = LAST_PORT - FIRST_PORT
        self._ports = iter([FIRST_PORT + (start - FIRST_PORT + i) % span for i in range(span)])

    def next(self) -> int:
        for port in self._ports:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise Exhausted(f"no port between {FIRST_PORT} and {LAST_PORT} is free; stop a server there")


def ports_behind(plan: FederationPlan, count: int) -> list[int]:
    """Free ports that the plan does not use itself, for one run."""
    free = _FreePorts(plan.etcd_peer_port + 1)  # the last that the plan was given
    return [free.next() for _ in range(count)]


def load_plan(home: Path) -> FederationPlan | None:
    """The plan of a home folder, or None where there is none yet. Raises Corrupt."""
    path = home / PLAN_FILE
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=FederationPlan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"{path} is damaged ({error}); restore it, or remove {home} to begin anew") from None


def plan_json(plan: FederationPlan) -> str:
    return json.dumps(msgspec.to_builtins(plan), indent=2) + "\n"
