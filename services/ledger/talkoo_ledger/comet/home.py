"""CometBFT's home folder, written from the ledger's settings before each start.

Configuration and genesis are written anew each time: the settings are what counts. Keys are written once, and the state
of the private validator (what it signed last) is never touched again.
"""

from __future__ import annotations

import base64
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from talkoo_consensus.chain import MESSAGE_DELAY_NS, NO_GAS_LIMIT, PRECISION_NS
from talkoo_consensus.evidence import EvidenceParams
from talkoo_consensus.types import MAX_BLOCK_BYTES, MAX_EVIDENCE_BYTES

from talkoo_core.errors import Corrupt, InvalidInput, NotFound
from talkoo_core.signing import PrivateKey
from talkoo_ledger.abci.beginning import Beginning
from talkoo_ledger.genesis import Genesis
from talkoo_ledger.mempool import MAX_BYTES, MAX_TXS
from talkoo_ledger.settings import LedgerSettings
from talkoo_runtime.disk import write_atomic
from talkoo_runtime.keys import new_key

GENESIS_FILE = "genesis.json"
KEY_TYPE = "tendermint/PrivKeyEd25519"
PUBLIC_KEY_TYPE = "tendermint/PubKeyEd25519"
CACHE_TXS = 4 * MAX_TXS
RPC_BODY_BYTES = 4 * 1024 * 1024
TRUST_PERIOD_S = 168 * 3_600
PROPOSE_TIMEOUT_MS = 3_000


def find_binary(settings: LedgerSettings) -> Path:
    """CometBFT's program. Raises NotFound (`no_cometbft`) with what to do."""
    found = shutil.which(settings.comet.binary)
    if found is None:
        raise NotFound(
            f"there is no program {settings.comet.binary!r}; install CometBFT 1.0.1 "
            "(go install github.com/cometbft/cometbft/cmd/cometbft@v1.0.1), or name it in `comet.binary`",
            code="no_cometbft",
        )
    return Path(found)


def home_of(settings: LedgerSettings) -> Path:
    return Path(settings.state_dir) / "comet"


def has_begun(settings: LedgerSettings) -> bool:
    """Whether this ledger's chain has been given to CometBFT."""
    return (home_of(settings) / "config" / GENESIS_FILE).exists()


def ensure_node_key(home: Path) -> str:
    """The node's id in CometBFT's network: the address of a key that is made on the first call."""
    path = home / "config" / "node_key.json"
    if not path.exists():
        write_atomic(path, _json({"priv_key": _private(new_key())}), mode=0o600)
    try:
        raw = base64.b64decode(json.loads(path.read_bytes())["priv_key"]["value"])
        return PrivateKey.from_seed(raw[:32]).public.address.hex()
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} is not a node key ({error}); restore it, or delete it to get a new id") from None


def write_home(settings: LedgerSettings, genesis: Genesis, beginning: Beginning, key: PrivateKey, socket: Path) -> Path:
    """Everything CometBFT reads at its start; `beginning` counts for the first one. Returns the home."""
    home = home_of(settings)
    ensure_node_key(home)
    config, data = home / "config", home / "data"
    data.mkdir(parents=True, exist_ok=True)
    validator = {
        "address": key.public.address.hex().upper(),
        "pub_key": {"type": PUBLIC_KEY_TYPE, "value": _base64(key.public.raw)},
        "priv_key": _private(key),
    }
    write_atomic(config / "priv_validator_key.json", _json(validator), mode=0o600)
    if not has_begun(settings):
        write_atomic(config / GENESIS_FILE, _json(genesis_document(genesis, beginning)))
    state = data / "priv_validator_state.json"
    if not state.exists():
        if any(data.iterdir()):
            raise Corrupt(
                f"{state} is missing, and without it this validator could sign twice: restore it, or let the "
                "organization rotate its consensus key",
                code="sign_state_damaged",
            )
        height, round_, step = beginning.signed
        write_atomic(state, _json({"height": str(height), "round": round_, "step": step}), mode=0o600)
    write_atomic(config / "config.toml", configuration(settings, socket).encode())
    return home


def genesis_document(genesis: Genesis, beginning: Beginning) -> dict[str, Any]:
    """CometBFT's genesis: the same chain id, time, validators, limits and state root as our own engine's chain has."""
    evidence = EvidenceParams.within_unbonding(genesis.params["unbonding_blocks"])
    return {
        "genesis_time": rfc3339(beginning.time_ns),
        "chain_id": genesis.chain_id,
        "initial_height": str(beginning.height),
        "consensus_params": {
            "block": {"max_bytes": str(MAX_BLOCK_BYTES), "max_gas": str(NO_GAS_LIMIT)},
            "evidence": {
                "max_age_num_blocks": str(evidence.max_age_blocks),
                "max_age_duration": str(evidence.max_age_ns),
                "max_bytes": str(MAX_EVIDENCE_BYTES),
            },
            "validator": {"pub_key_types": ["ed25519"]},
            "version": {"app": str(beginning.app_version)},
            "synchrony": {"precision": str(PRECISION_NS), "message_delay": str(MESSAGE_DELAY_NS)},
            "feature": {"vote_extensions_enable_height": "0", "pbts_enable_height": str(beginning.height)},
        },
        "validators": [
            {
                "address": validator.address.hex().upper(),
                "pub_key": {"type": PUBLIC_KEY_TYPE, "value": _base64(validator.public_key)},
                "power": str(validator.power),
                "name": "",
            }
            for validator in beginning.validators.validators
        ],
        "app_hash": beginning.app_hash.hex().upper(),
        "app_state": genesis.sha256().hex(),
    }


def configuration(settings: LedgerSettings, socket: Path) -> str:
    """config.toml: what is not named here is CometBFT's default."""
    comet = settings.comet
    tables: dict[str, dict[str, object]] = {
        "": {
            "version": "1.0.1",
            "proxy_app": f"unix://{socket}",
            "moniker": settings.organization,
            "log_level": comet.log_level,
            "abci": "socket",
        },
        "rpc": {
            "laddr": f"tcp://{comet.rpc_listen}",
            "max_body_bytes": RPC_BODY_BYTES,
            "experimental_websocket_write_buffer_size": 2_000,
        },
        "p2p": {
            "laddr": f"tcp://{comet.listen}",
            "external_address": comet.advertise,
            "persistent_peers": ",".join(comet.peers),
            "addr_book_strict": False,
            "allow_duplicate_ip": True,
        },
        "mempool": {"size": MAX_TXS, "max_txs_bytes": MAX_BYTES, "cache_size": CACHE_TXS},
        "tx_index": {"indexer": "kv" if comet.index else "null"},
        "statesync": {
            "enable": bool(comet.sync_rpc),  # it leaves this alone once it has blocks
            "rpc_servers": ",".join(comet.sync_rpc),
            "trust_height": settings.trust_height,
            "trust_hash": settings.trust_hash,
            "trust_period": f"{TRUST_PERIOD_S}s",
            "discovery_time": "5s",
        },
        "consensus": {
            "timeout_propose": f"{PROPOSE_TIMEOUT_MS}ms",
            "timeout_commit": f"{settings.block_interval_ms}ms",
            "create_empty_blocks_interval": f"{settings.empty_block_interval_ms}ms",
        },
    }
    lines: list[str] = []
    for table, values in tables.items():
        lines += [f"[{table}]"] if table else []
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def check_comet(settings: LedgerSettings) -> None:
    """Raises InvalidInput (`bad_settings`) for what CometBFT would refuse with a riddle."""
    comet = settings.comet
    if comet.sync_rpc and (len(comet.sync_rpc) < 2 or settings.trust_height < 1 or len(settings.trust_hash) != 64):
        raise InvalidInput(
            "comet.sync_rpc needs two RPC addresses or more, and trust_height and trust_hash "
            "(64 hex digits) of a header you trust",
            code="bad_settings",
        )
    for peer in comet.peers:
        if len(peer.partition("@")[0]) != 40:
            raise InvalidInput(
                f"{peer!r} in comet.peers is no `<node id>@host:port`; their operator's "
                "`python -m talkoo_ledger.comet` prints it",
                code="bad_settings",
            )


def rfc3339(time_ns: int) -> str:
    seconds, nanos = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"


def _private(key: PrivateKey) -> dict[str, str]:
    return {"type": KEY_TYPE, "value": _base64(key.seed + key.public.raw)}


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"
