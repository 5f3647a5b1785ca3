"""Real ledger nodes under the real CometBFT: as `Ledgers`, with `engine = "cometbft"` and a CometBFT for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from talkoo_ledger.comet.home import ensure_node_key

from talkoo_sim.cometbft import cometbft_binary
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.ports import free_ports


@dataclass
class CometLedgers(Ledgers):
    """`p2p_ports` and `rpc_ports` are CometBFT's, by organization."""

    p2p_ports: dict[str, int] = field(default_factory=dict)
    rpc_ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ports = free_ports(2 * len(self.names))
        self.p2p_ports = dict(zip(self.names, ports[::2], strict=True))
        self.rpc_ports = dict(zip(self.names, ports[1::2], strict=True))
        super().__post_init__()

    def state_folder(self, name: str) -> Path:
        return self.folder / name / "state"

    def rpc_url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.rpc_ports[name]}"

    def peer(self, name: str) -> str:
        """As others name this node's CometBFT."""
        return f"{ensure_node_key(self.state_folder(name) / 'comet')}@127.0.0.1:{self.p2p_ports[name]}"

    def write_settings(self, name: str, peers: Sequence[str] | None = None, **changes: object) -> None:
        """The change `comet` is one of the table `[comet]`, field by field."""
        comet = cast("dict[str, object]", changes.pop("comet", {}))
        super().write_settings(name, peers, **{"engine": "cometbft"} | self.settings | changes)
        values: dict[str, object] = {
            "binary": str(cometbft_binary()),
            "listen": f"127.0.0.1:{self.p2p_ports[name]}",
            "rpc_listen": f"127.0.0.1:{self.rpc_ports[name]}",
            "peers": [self.peer(other) for other in self.names if other != name],
        }
        lines = ["[comet]", *(f"{key} = {json.dumps(value)}" for key, value in (values | comet).items())]
        with self.settings_path(name).open("a") as file:
            file.write("\n".join(lines) + "\n")

    def comet_log(self, name: str) -> str:
        return (self.state_folder(name) / "comet" / "log.txt").read_text()
