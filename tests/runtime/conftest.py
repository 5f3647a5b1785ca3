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

import grpc
import msgspec
import pytest
from talkoo_api.gateway.v1 import gateway_pb2_grpc
from talkoo_gateway.blob_transfers import BlobTransfers
from talkoo_gateway.desk import Desk
from talkoo_gateway.servicer import GatewayServicer
from talkoo_gateway.settings import GatewaySettings
from talkoo_gateway.upstreams import Upstreams

from talkoo_core.errors import Unavailable
from talkoo_runtime.blobs import BlobStore, S3BlobStore, open_blob_store
from talkoo_runtime.etcd import EtcdStore
from talkoo_runtime.etcd_server import etcd_arguments
from talkoo_runtime.grpc_server import make_server, start_server
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


class GatewayAtWork:
    """A real gateway's gRPC over mutual TLS, which tests may stop and start again; nothing stands behind it."""

    def __init__(self, town: Town, organization: Authority, blobs: str) -> None:
        name = f"{organization.organization}-gateway"
        nobody = "127.0.0.1:1"
        own = msgspec.structs.asdict(town.settings(organization, "gateway", name))
        self.settings = GatewaySettings(
            **own, http_listen=nobody, ledger=nobody, scheduler=nobody, validator=nobody, blobs=blobs
        )
        self.url = f"gateway://{self.settings.listen}"
        self.store = open_blob_store(blobs, self.settings)
        self._upstreams = Upstreams(self.settings)
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        desk = Desk(self._upstreams, BlobTransfers(self.store, Path(self.settings.state_dir)))
        self._server = make_server()
        gateway_pb2_grpc.add_GatewayServicer_to_server(GatewayServicer(desk), self._server)
        await start_server(self._server, self.settings)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
        self._server = None

    async def close(self) -> None:
        await self.stop()
        await self.store.close()
        await self._upstreams.close()


@pytest.fixture
async def gateway(town: Town) -> AsyncIterator[GatewayAtWork]:
    """North's, before a folder."""
    gateway = GatewayAtWork(town, town.north, (town.folder / "stored").as_uri())
    await gateway.start()
    yield gateway
    await gateway.close()


@pytest.fixture
async def gateway_store(town: Town, gateway: GatewayAtWork) -> AsyncIterator[BlobStore]:
    """North's store as an agent of south has it."""
    store = open_blob_store(gateway.url, town.settings(town.south, "agent", "south-1"))
    yield store
    await store.close()


@pytest.fixture
def make_gateway() -> type[GatewayAtWork]:
    """For tests that want another one: `start`, and `close` in the end."""
    return GatewayAtWork


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
