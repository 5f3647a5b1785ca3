"""Real parts for the runtime's tests: certificates, an etcd server, an S3 server."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from talkoo_core.errors import Unavailable
from talkoo_runtime.blobs import S3BlobStore
from talkoo_runtime.etcd import EtcdStore
from talkoo_runtime.etcd_server import etcd_arguments
from talkoo_runtime.pki import Authority, ensure_authority, ensure_certificate, identity_uri, trust_bundle
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_sim.ports import free_port

PATIENCE_S = 30.0


async def eventually(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    """Poll a condition until it holds, or fail the test."""
    deadline = time.monotonic() + PATIENCE_S
    while not await holds():
        assert time.monotonic() < deadline, f"not in {PATIENCE_S:.0f} s: {what}"
        await asyncio.sleep(0.05)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[[Callable[[], Awaitable[bool]], str], Awaitable[None]]:
    return eventually


@dataclass(frozen=True)
class Town:
    """Two organizations that trust each other, and a stranger that nobody trusts."""

    folder: Path
    north: Authority
    south: Authority
    stranger: Authority

    @property
    def bundle(self) -> Path:
        return self.folder / "trust.pem"

    def settings(self, authority: Authority, role: str, name: str, *, claims: str = "") -> ServiceSettings:
        """A service with a certificate; `claims` names another organization than the issuer's."""
        folder = self.folder / name
        ensure_certificate(authority, folder, identity_uri("town", claims or authority.organization, role, name))
        return ServiceSettings(
            federation="town",
            organization=authority.organization,
            name=name,
            listen=f"127.0.0.1:{free_port()}",
            state_dir=str(folder / "state"),
            certificate=str(folder / "certificate.pem"),
            private_key=str(folder / "private-key.pem"),
            trust_bundle=str(self.bundle),
        )


@pytest.fixture
def town(tmp_path: Path) -> Town:
    north, south, stranger = (ensure_authority(tmp_path / n / "ca", n) for n in ("north", "south", "stranger"))
    (tmp_path / "trust.pem").write_bytes(trust_bundle([north, south]))
    return Town(tmp_path, north, south, stranger)


class EtcdProcess:
    """A real etcd server that tests may kill and start again on the same data."""

    def __init__(self, town: Town) -> None:
        server = town.settings(town.north, "etcd", "etcd")
        client = town.settings(town.north, "scheduler", "north-scheduler")
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.arguments = etcd_arguments(
            town.folder / "etcd-data",
            int(self.endpoint.rsplit(":", 1)[1]),
            free_port(),
            Path(server.certificate),
            Path(server.private_key),
            town.bundle,
        )
        self.client = client
        self.process: subprocess.Popen[bytes] | None = None
        self.log = (town.folder / "etcd.log").open("ab")

    def start(self) -> None:
        self.process = subprocess.Popen(self.arguments, stdout=self.log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def store(self) -> EtcdStore:
        return EtcdStore(
            [self.endpoint],
            Path(self.client.certificate),
            Path(self.client.private_key),
            Path(self.client.trust_bundle),
        )

    async def answers(self, store: EtcdStore) -> None:
        async def reads() -> bool:
            try:
                await store.get("/")
            except Unavailable:
                return False
            return True

        await eventually(reads, "etcd answers")


@pytest.fixture
async def etcd(town: Town) -> AsyncIterator[EtcdProcess]:
    process = EtcdProcess(town)
    process.start()
    try:
        async with process.store() as store:
            await process.answers(store)
        yield process
    finally:
        process.kill()
        process.log.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SeaweedFS from its wheel, a real S3 server; yields its endpoint."""
    folder = tmp_path_factory.mktemp("s3")
    ports = {name: _port_with_grpc_twin() for name in ("master", "volume", "filer", "s3")}
    arguments = [
        str(Path(sys.executable).parent / "weed"),
        "server",
        "-s3",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-volume.max=4",
        *(f"-{name}.port={port}" for name, port in ports.items()),
    ]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tester-secret"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            endpoint = f"http://127.0.0.1:{ports['s3']}"
            asyncio.run(_bucket(endpoint, process, folder / "server.log"))
            yield endpoint
        finally:
            process.kill()
            process.wait()


async def _bucket(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    store = S3BlobStore(endpoint, "blobs", "", ("tester", "tester-secret"))

    async def made() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            await store.make_bucket()
            await store.put(b"probe")
        except Unavailable:
            return False
        return True

    await eventually(made, "the S3 server takes objects")


def _port_with_grpc_twin() -> int:
    """SeaweedFS also listens on port + 10000."""
    while True:
        port = free_port()
        if port + 10_000 > 65_535:
            port -= 20_000
        with socket.socket() as one, socket.socket() as twin:
            try:
                one.bind(("127.0.0.1", port))
                twin.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
