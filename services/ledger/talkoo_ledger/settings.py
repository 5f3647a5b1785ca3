"""Settings of a ledger node."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from talkoo_runtime.service_settings import ServiceSettings

COMETBFT: Final = "cometbft"


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another organization's ledger node."""

    organization: str
    endpoint: str
    """host:port of its gRPC server."""


class CometSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `engine = "cometbft"` needs; a table `[comet]`. docs/engines.md explains each."""

    binary: str = "cometbft"
    """The program, CometBFT 1.0.1: a path, or a name on PATH."""
    listen: str = "0.0.0.0:26656"
    """host:port for the CometBFT of other members (encrypted, authenticated by node keys)."""
    advertise: str = ""
    """host:port at which they reach it; empty: it tells what it finds out itself."""
    rpc_listen: str = "127.0.0.1:26657"
    """host:port of CometBFT's RPC, which this process uses, too. It knows no authentication: keep it inside."""
    peers: tuple[str, ...] = ()
    """`<node id>@host:port` of other members' CometBFT; `python -m talkoo_ledger.comet` prints one's own id."""
    index: bool = True
    """Whether its RPC finds transactions and blocks by hash and event; without, it writes less."""
    log_level: str = "error"
    """Of CometBFT, whose lines go to `<state_dir>/comet/log.txt`: debug, info, error or none."""
    sync_rpc: tuple[str, ...] = ()
    """Two or more RPC addresses (`http://host:port`): a new node begins with its peers' snapshot, not with block 1.
    Needs `trust_height` and `trust_hash`, too."""


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
    retain_blocks: int = 0
    """So many of the newest blocks stay on disk; 0: all. A node that keeps few cannot help others to replay."""
    commit_timeout_ms: int = 100
    """How long late precommits are waited for after a decision."""
    snapshot_interval_blocks: int = 1_000
    """A snapshot of the state is taken every so many blocks, the last two are kept for new members; 0: none."""
    snapshot_sync_blocks: int = 5_000
    """A new node that is so far behind, or whose peers have not kept the blocks it lacks, begins with a snapshot."""
    trust_height: int = 0
    trust_hash: str = ""
    """A header that the operator trusts, with its hash in hex; else a snapshot is trusted from the genesis on."""
    rpc_listen: str = ""
    """host:port of CometBFT's RPC over our own engine (docs/rpc.md); empty: off. Anybody who reaches it may ask and
    send transactions: 127.0.0.1, or behind a proxy. With `engine = "cometbft"` it is `comet.rpc_listen`."""
    halt_height: int = 0
    """Decide no block after this one: all members set it before they change the engine together; 0: go on for ever."""
    engine: Literal["embedded", "cometbft"] = "embedded"
    """Who orders blocks: `embedded` (in this process) or `cometbft` (CometBFT 1.0.1 under the same ledger)."""
    comet: CometSettings = CometSettings()
