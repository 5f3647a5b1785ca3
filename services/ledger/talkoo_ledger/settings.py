"""Settings of a ledger node."""

from __future__ import annotations

import msgspec

from talkoo_runtime.service_settings import ServiceSettings


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another organization's ledger node."""

    organization: str
    endpoint: str
    """host:port of its gRPC server."""


class LedgerSettings(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a ledger node needs beyond what every service has."""

    genesis: str
    """The federation's genesis file."""
    consensus_key: str
    """Key file of this organization's validator."""
    peers: tuple[Peer, ...] = ()
    """Where to begin: one that answers is enough, it names the others."""
    outbound_only: bool = False
    """This node only dials out: it announces no endpoint and takes no streams of other members."""
    advertise: str = ""
    """host:port at which other members reach this node; empty: `listen`, unless that is every address (0.0.0.0)."""
    empty_block_interval_ms: int = 1000
    """Without transactions a block is proposed so long after the last."""
    block_interval_ms: int = 150
    """A block is proposed no sooner after the last, so that a busy chain makes larger blocks instead of more."""
    commit_timeout_ms: int = 100
    """How long late precommits are waited for after a decision."""
