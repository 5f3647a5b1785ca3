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
    empty_block_interval_ms: int = 1000
    """Without transactions a block is proposed so long after the last."""
    commit_timeout_ms: int = 100
    """How long late precommits are waited for after a decision."""
