"""A blob store behind a real gateway: links that break, gateways that lie or are full, who may ask."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from talkoo_api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from talkoo_gateway import blob_transfers

from talkoo_core.errors import Corrupt, Exhausted, InvalidInput, NotFound, PermissionDenied, Unavailable
from talkoo_runtime import blobs, gateway_blobs
from talkoo_runtime.blobs import BlobStore, open_blob_store
from talkoo_runtime.gateway_blobs import GatewayBlobStore
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.make_bucket import make_bucket
from talkoo_sim.line import Line

LARGE = bytes(range(256)) * 20_000


async def test_a_gateway_that_was_away_is_dialled_again(town: Any, gateway: Any, gateway_store: BlobStore) -> None:
    digest = await gateway_store.put(LARGE)
    await gateway.stop()
    reading = asyncio.create_task(gateway_store.get(digest))
    done, _ = await asyncio.wait({reading}, timeout=0.5)
    assert not done, "a lost gateway is an error at once"
    await gateway.start()
    assert await reading == LARGE
    assert await gateway_store.put(b"more") == hashlib.sha256(b"more").hexdigest()


async def test_a_gateway_that_stays_away_is_unavailable(town: Any, tmp_path: Path) -> None:
    settings = town.settings(town.south, "agent", "south-1")
    store = GatewayBlobStore("127.0.0.1:1", settings, unreachable_patience_s=0.3)
    for ask in (store.get("ab" * 32), store.put(b"x"), store.has("ab" * 32), store.get_to_file("ab" * 32, tmp_path)):
        with pytest.raises(Unavailable, match=r"the gateway 127.0.0.1:1 cannot be reached") as caught:
            await ask
        assert caught.value.code == "unreachable"
    await store.close()


async def test_renewed_certificates_are_shown_to_a_gateway_that_comes_back(town: Any, gateway: Any) -> None:
    settings = town.settings(town.stranger, "agent", "south-1")
    store = GatewayBlobStore(gateway.settings.listen, settings, unreachable_patience_s=0.3)
    with pytest.raises(Unavailable):
        await store.put(b"x")
    for path in (settings.certificate, settings.private_key):
        Path(path).unlink()
    town.settings(town.south, "agent", "south-1")
    assert await store.get(await store.put(b"x")) == b"x"
    await store.close()


async def test_damage_behind_the_gateway_is_corrupt(gateway_store: BlobStore, town: Any, tmp_path: Path) -> None:
    digest = await gateway_store.put(b"precious")
    next((town.folder / "stored").rglob(digest)).write_bytes(b"precioos")
    with pytest.raises(Corrupt, match="damaged"):
        await gateway_store.get(digest)
    with pytest.raises(Corrupt, match="damaged"):
        await gateway_store.get_to_file(digest, tmp_path / "copies" / "copy")
    assert not list((tmp_path / "copies").iterdir())


async def test_what_is_there_already_is_not_sent_again(gateway_store: BlobStore, town: Any) -> None:
    digest = await gateway_store.put(b"once")
    path = next((town.folder / "stored").rglob(digest))
    before = path.stat().st_ino
    assert await gateway_store.put(b"once") == digest
    assert path.stat().st_ino == before


@pytest.mark.parametrize("role", ["agent", "validator", "gateway"])
async def test_services_of_any_member_are_served(role: str, town: Any, gateway: Any) -> None:
    store = open_blob_store(gateway.url, town.settings(town.south, role, f"south-{role}"))
    assert await store.get(await store.put(b"x")) == b"x"
    await store.close()


@pytest.mark.parametrize("role", ["ledger", "scheduler", "etcd"])
async def test_services_that_need_no_blobs_get_none(role: str, town: Any, gateway: Any) -> None:
    store = open_blob_store(gateway.url, town.settings(town.south, role, f"south-{role}"))
    for ask in (store.put(b"x"), store.get("ab" * 32), store.size("ab" * 32)):
        with pytest.raises(PermissionDenied, match="may not call this"):
            await ask
    await store.close()


async def test_a_gateway_may_stand_before_another_one(town: Any, gateway: Any, make_gateway: Any) -> None:
    """A private cluster's own gateway: its users upload through it into the other cluster's store."""
    private = make_gateway(town, town.south, gateway.url)
    await private.start()
    user = open_blob_store(private.url, town.settings(town.south, "user", "sue"))
    digest = await user.put(LARGE)
    assert (town.folder / "stored" / digest[:2] / digest[2:4] / digest).read_bytes() == LARGE
    assert (await user.get(digest), await user.size(digest)) == (LARGE, len(LARGE))
    with pytest.raises(NotFound):
        await user.size("ab" * 32)
    await user.close()
    await private.close()


async def test_a_full_gateway_is_asked_again_until_it_has_room(
    town: Any, gateway: Any, gateway_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_transfers, "MAX_TRANSFERS", 0)
    writing = asyncio.create_task(gateway_store.put(b"x"))
    done, _ = await asyncio.wait({writing}, timeout=0.5)
    assert not done
    monkeypatch.undo()
    await writing
    monkeypatch.setattr(blob_transfers, "MAX_TRANSFERS", 0)
    settings = town.settings(town.south, "agent", "south-1")
    hasty = GatewayBlobStore(gateway.settings.listen, settings, busy_patience_s=0.3)
    with pytest.raises(Exhausted, match="on their way here already"):
        await hasty.put(b"y")
    await hasty.close()


async def test_more_than_a_gateway_takes_is_refused_before_it_is_sent(
    gateway_store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(b"x" * 1001)
    monkeypatch.setattr(gateway_blobs, "MAX_GATEWAY_BLOB_BYTES", 1000)
    for ask in (gateway_store.put(b"x" * 1001), gateway_store.put_file(tmp_path / "large")):
        with pytest.raises(Exhausted, match="1001 bytes; use a store of your own"):
            await ask
    monkeypatch.undo()
    monkeypatch.setattr(blob_transfers, "MAX_GATEWAY_BLOB_BYTES", 1000)
    with pytest.raises(Exhausted) as caught:
        await gateway_store.put(b"x" * 1001)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_line_that_is_cut_in_the_middle_of_a_blob_costs_only_time(
    way: str, town: Any, gateway: Any, tmp_path: Path
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copies" / "copy"
    source.write_bytes(LARGE)
    digest = hashlib.sha256(LARGE).hexdigest()
    if way == "down":
        await gateway.store.put(LARGE)
    line = Line(gateway.settings.listen, cut_after_bytes=len(LARGE) // 2)
    async with line.open() as target:
        store = GatewayBlobStore(target, town.settings(town.south, "agent", "south-1"))
        if way == "down":
            await store.get_to_file(digest, copy)
            assert copy.read_bytes() == LARGE
            assert [path.name for path in copy.parent.iterdir()] == ["copy"]
        else:
            assert await store.put_file(source) == digest
            assert await gateway.store.get(digest) == LARGE
        await store.close()
    assert line.cuts == 1
    assert [path.name for path in (town.folder / "stored").rglob("*") if path.is_file()] == [digest], "no half is kept"


async def test_a_file_that_changes_while_it_is_sent_is_corrupt(
    gateway_store: BlobStore, town: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").write_bytes(b"after")
    monkeypatch.setattr(blobs, "digest_of_file", lambda _: hashlib.sha256(b"before").hexdigest())
    with pytest.raises(Corrupt, match="did not arrive as it was announced"):
        await gateway_store.put_file(tmp_path / "source")
    assert not list((town.folder / "stored").rglob("*"))


class Liar(gateway_pb2_grpc.GatewayServicer):
    """STAND-IN for a gateway that does not do as it says."""

    async def StatBlob(self, request: Any, context: Any) -> gateway_pb2.BlobInfo:  # noqa: N802
        raise NotFound("the blob is not in the store", code="no_blob")

    async def PutBlob(self, chunks: AsyncIterator[Any], context: Any) -> gateway_pb2.BlobInfo:  # noqa: N802
        return gateway_pb2.BlobInfo(sha256="ab" * 32, size_bytes=sum([len(chunk.data) async for chunk in chunks]))

    async def GetBlob(self, request: Any, context: Any) -> AsyncIterator[gateway_pb2.BlobChunk]:  # noqa: N802
        while True:
            yield gateway_pb2.BlobChunk(data=b"and so on" * 10_000)


@pytest.fixture
async def liar(town: Any) -> AsyncIterator[GatewayBlobStore]:
    settings = town.settings(town.north, "gateway", "north-gateway")
    server: grpc.aio.Server = make_server()
    gateway_pb2_grpc.add_GatewayServicer_to_server(Liar(), server)
    await start_server(server, settings)
    store = GatewayBlobStore(settings.listen, town.settings(town.south, "agent", "south-1"))
    yield store
    await store.close()
    await server.stop(0)


async def test_a_gateway_that_lies_fills_neither_memory_nor_disk(
    liar: GatewayBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_blobs, "MAX_GATEWAY_BLOB_BYTES", 1 << 20)
    with pytest.raises(Corrupt, match="stored abab"):
        await liar.put(b"x")
    with pytest.raises(Corrupt, match="too many bytes"):
        await liar.get("cd" * 32)
    with pytest.raises(Corrupt, match="too many bytes"):
        await liar.get_to_file("cd" * 32, tmp_path / "copies" / "copy")
    assert not list((tmp_path / "copies").iterdir())


async def test_only_a_service_opens_a_gateway_as_its_store() -> None:
    with pytest.raises(InvalidInput, match="for services, which show their certificate"):
        open_blob_store("gateway://127.0.0.1:1")
    await make_bucket("gateway://127.0.0.1:1")
