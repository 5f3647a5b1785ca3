"""Real ledger nodes: a `python -m talkoo_ledger` for each organization over mutual TLS, each in its own folder.

What tests and benchmarks start, kill and ask.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc
from talkoo_ledger.genesis import Genesis

from talkoo_core.errors import TalkooError
from talkoo_runtime.disk import write_atomic
from talkoo_runtime.grpc_client import open_channel
from talkoo_runtime.keys import save_key
from talkoo_runtime.ledger_client import LedgerClient
from talkoo_runtime.parent_death import bound_to_us
from talkoo_runtime.pki import (
    CERTIFICATE_FILE,
    KEY_FILE,
    Authority,
    ensure_authority,
    ensure_certificate,
    identity_uri,
    trust_bundle,
)
from talkoo_sim.ledger_chain import key_of, make_genesis
from talkoo_sim.ports import free_ports

FEDERATION = "talkoo-test"
DEADLINE_S = 90.0
"""Much more than anything here takes; only a machine that is busy with other things comes near it."""
END_S = 60.0
"""For a process to end once it was told to."""
LOOK_EVERY_S = 0.05


@dataclass
class Ledgers:
    """The nodes of a federation, to be started and killed by name."""

    folder: Path
    genesis: Genesis = field(default_factory=make_genesis)
    settings: dict[str, object] = field(default_factory=dict)
    """What every node's settings file says beyond the defaults here."""
    launcher: Sequence[str] = ("-m", "talkoo_ledger")
    """Python's arguments that run a node; `--settings FILE` follows."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    channels: list[grpc.aio.Channel] = field(default_factory=list)
    authorities: dict[str, Authority] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    newcomers: list[str] = field(default_factory=list)
    """Organizations with a node that the genesis does not name."""

    @property
    def names(self) -> list[str]:
        return [organization.name for organization in self.genesis.organizations] + self.newcomers

    def __post_init__(self) -> None:
        self.ports = dict(zip(self.names, free_ports(len(self.names)), strict=True))
        self.authorities = {name: ensure_authority(self.folder / name / "authority", name) for name in self.names}
        (self.folder / "trust.pem").write_bytes(trust_bundle(list(self.authorities.values())))
        (self.folder / "genesis.json").write_bytes(self.genesis.canonical_json())
        for name in self.names:
            self.write_consensus_key(name, f"{name}-consensus")
            self.write_settings(name)

    def write_consensus_key(self, name: str, key: str) -> None:
        """What the node of `name` signs with from its next start on."""
        path = self.folder / name / "consensus.key"
        path.unlink(missing_ok=True)
        save_key(path, hashlib.sha256(f"sim key {key}".encode()).digest())

    def provision(self, name: str, *seeds: str) -> None:
        """A newcomer: its folder, authority and settings, with its authority in everybody's trust bundle."""
        self.newcomers.append(name)
        (self.ports[name],) = free_ports(1)
        self.authorities[name] = ensure_authority(self.folder / name / "authority", name)
        write_atomic(self.folder / "trust.pem", trust_bundle(list(self.authorities.values())))
        self.write_consensus_key(name, f"{name}-consensus")
        self.write_settings(name, seeds or None)

    def certificate(self, organization: str, role: str) -> Path:
        """The folder of a certificate of one of the organization's services."""
        folder = self.folder / organization / role
        uri = identity_uri(FEDERATION, organization, role, f"{organization}-{role}")
        ensure_certificate(self.authorities[organization], folder, uri)
        return folder

    def settings_path(self, name: str) -> Path:
        return self.folder / name / "settings.toml"

    def write_settings(self, name: str, peers: Sequence[str] | None = None, **changes: object) -> None:
        """`peers`: whose endpoints the node is told; None: everybody's."""
        certificate = self.certificate(name, "ledger")
        values: dict[str, object] = {
            "federation": FEDERATION,
            "organization": name,
            "name": f"{name}-ledger",
            "listen": f"127.0.0.1:{self.ports[name]}",
            "state_dir": str(self.folder / name / "state"),
            "certificate": str(certificate / CERTIFICATE_FILE),
            "private_key": str(certificate / KEY_FILE),
            "trust_bundle": str(self.folder / "trust.pem"),
            "genesis": str(self.folder / "genesis.json"),
            "consensus_key": str(self.folder / name / "consensus.key"),
            "empty_block_interval_ms": 200,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in (values | self.settings | changes).items()]
        for other in self.names if peers is None else peers:
            if other != name:
                endpoint = f"127.0.0.1:{self.ports[other]}"
                lines += ["[[peers]]", f'organization = "{other}"', f'endpoint = "{endpoint}"']
        self.settings_path(name).write_text("\n".join(lines) + "\n")

    def start(self, *names: str) -> None:
        for name in names or self.names:
            with (self.folder / name / "log.txt").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, *self.launcher, "--settings", str(self.settings_path(name))],
                    stdout=log,
                    stderr=log,
                    env=os.environ | bound_to_us(),
                )

    def stop(self, *names: str, how: signal.Signals = signal.SIGKILL) -> None:
        for name in names:
            self.processes[name].send_signal(how)
        for name in names:
            self.processes.pop(name).wait(END_S)

    def log(self, name: str) -> str:
        return (self.folder / name / "log.txt").read_text()

    def channel(self, organization: str, role: str = "gateway", to: str = "") -> grpc.aio.Channel:
        """To the organization's own ledger node, or another's."""
        folder = self.certificate(organization, role)
        target = f"127.0.0.1:{self.ports[to or organization]}"
        channel = open_channel(target, folder / CERTIFICATE_FILE, folder / KEY_FILE, self.folder / "trust.pem")
        self.channels.append(channel)
        return channel

    def client(self, organization: str, user: str = "") -> LedgerClient:
        stub = service_pb2_grpc.LedgerStub(self.channel(organization))  # type: ignore[no-untyped-call]
        return LedgerClient(stub, key_of(user) if user else None)

    async def eventually(self, holds: Callable[[], Awaitable[Any]], what: str, deadline_s: float = DEADLINE_S) -> Any:
        """Look again until it holds; returns what was seen. A ledger that cannot be reached does not hold."""
        loop = asyncio.get_running_loop()
        end, last = loop.time() + deadline_s, ""
        while loop.time() < end:
            try:
                seen = await holds()
                if seen:
                    return seen
            except TalkooError as error:
                last = f" ({error})"
            await asyncio.sleep(LOOK_EVERY_S)
        raise AssertionError(f"in {deadline_s:.0f} s it did not happen that {what}{last}")

    async def reach(self, height: int, *names: str) -> None:
        """Wait until these nodes (all when none is named) have decided `height`."""
        for name in names or self.names:
            client = self.client(name)

            async def there(client: LedgerClient = client) -> bool:
                return (await client.status()).height >= height

            await self.eventually(there, f"{name} decides block {height}")

    async def height(self, name: str) -> int:
        """As soon as the node says it."""

        async def said() -> service_pb2.Status:
            return await self.client(name).status()

        return int((await self.eventually(said, f"{name} says its height")).height)

    async def blocks(self, name: str) -> list[service_pb2.RawBlock]:
        """Every block of a node, with results."""
        stub = service_pb2_grpc.LedgerStub(self.channel(name))  # type: ignore[no-untyped-call]
        request = service_pb2.BlocksRequest(from_height=1)
        return [raw async for raw in stub.Blocks(request, wait_for_ready=True, timeout=DEADLINE_S)]

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait(END_S)
