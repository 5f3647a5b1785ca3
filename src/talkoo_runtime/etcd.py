"""Coordination in etcd: values, leases that are kept alive, elections with a fencing token. See decision record 6.

The client library's own lock and election do not keep their lease alive, so both are built here from leases and
transactions. Every call answers in `CALL_TIMEOUT_S` or raises Unavailable.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from etcd3aio import Etcd3Client, EtcdError, prefix_range_end
from etcd3aio._protobuf import Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp

from talkoo_core.errors import NotFound, Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

CALL_TIMEOUT_S = 5.0
KEEPALIVES_PER_TTL = 3
WATCH_RETRY_S = 0.3
PAGE = 100
"""Keys in one answer of etcd, and operations in one transaction."""
MAX_TRANSACTION_BYTES = 1 << 20
"""Of its operations: etcd refuses requests of more than 1.5 MiB."""


@dataclass(frozen=True, slots=True)
class Value:
    """What a key holds. `mod_revision` changes with every write; `create_revision` with every birth."""

    data: bytes
    mod_revision: int
    create_revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One write or removal; `value` is None when the key is gone."""

    key: str
    value: Value | None


class Lease:
    """Keys written with it live while it is kept alive; `lost` is set once it is not, whatever the reason.

    `lost` is set no later than the server forgets the lease: its life is counted from when a renewal was sent.
    """

    def __init__(self, client: Etcd3Client, lease_id: int, ttl_s: int, asked_s: float) -> None:
        """`asked_s`: the event loop's time before the lease was asked for."""
        self.id = lease_id
        self.lost = asyncio.Event()
        self._client = client
        self._ttl_s = ttl_s
        self._ends_s = asked_s + ttl_s
        self._keeper = asyncio.create_task(self._keep_alive(), name=f"lease {lease_id:x}")

    async def _keep_alive(self) -> None:
        """Renew three times per TTL. A renewal that is late by a whole TTL, or refused, means the lease is lost."""
        now = asyncio.get_running_loop().time
        pause = self._ttl_s / KEEPALIVES_PER_TTL
        try:
            while (left_s := self._ends_s - now()) > 0:
                await asyncio.sleep(min(pause, left_s))
                sent_s = now()
                try:
                    granted_s = await asyncio.wait_for(self._renew(), min(pause, self._ends_s - sent_s))
                except (TimeoutError, EtcdError, grpc.aio.AioRpcError) as error:
                    log.warning("a lease in etcd was not renewed: %s", type(error).__name__)
                    continue
                if granted_s <= 0:
                    return
                self._ends_s = sent_s + granted_s
        finally:
            self.lost.set()

    async def _renew(self) -> int:
        """One renewal; returns the seconds it is good for, 0 when etcd has forgotten the lease."""
        assert self._client.lease is not None
        call = self._client.lease.keep_alive(self.id)
        try:
            async for answer in call:
                return int(answer.TTL)
            return 0
        finally:
            call.cancel()

    async def release(self) -> None:
        """Give it back: its keys disappear at once."""
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        assert self._client.lease is not None
        try:
            await asyncio.wait_for(self._client.lease.revoke(self.id), CALL_TIMEOUT_S)
        except (TimeoutError, EtcdError, grpc.aio.AioRpcError) as error:
            # Also a lease that has run out already: etcd answers that it knows no such lease.
            log.info("a lease was not given back and will run out by itself: %s", _words(error))


@dataclass(frozen=True, slots=True)
class Leadership:
    """Won election. `token` grows with each term: who acts for the leader can refuse an older one."""

    key: str
    token: int
    lease: Lease

    @property
    def lost(self) -> asyncio.Event:
        return self.lease.lost

    async def resign(self) -> None:
        await self.lease.release()


class EtcdStore:
    """A narrow view of etcd: text keys, byte values."""

    def __init__(self, endpoints: list[str], certificate: Path, private_key: Path, trust_bundle: Path) -> None:
        self._endpoints = endpoints
        try:
            self._tls: dict[str, Any] = {
                "ca_cert": trust_bundle.read_bytes(),
                "cert_chain": certificate.read_bytes(),
                "cert_key": private_key.read_bytes(),
            }
        except FileNotFoundError as error:
            raise NotFound(f"there is no certificate file {error.filename}; `talkoo up` makes them") from None
        self._client: Any = None

    async def __aenter__(self) -> EtcdStore:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Raises Unavailable when the name of a server cannot be resolved."""
        addresses, name = await _resolved(self._endpoints)
        self._client = Etcd3Client(addresses, tls_server_name=name, **self._tls)
        await self._client.connect()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def get(self, key: str) -> Value | None:
        answer = await self._call(self._client.kv.get(key.encode()))
        return _value(answer.kvs[0]) if answer.kvs else None

    async def get_all(self, *keys: str) -> dict[str, Value]:
        """What stands at these keys, at most `PAGE` of them, at one moment; those that hold nothing are left out."""
        operations = [RequestOp(request_range=RangeRequest(key=key.encode())) for key in keys]
        answer = await self._call(self._client.kv.txn([], operations))
        found = (item for response in answer.responses for item in response.response_range.kvs)
        return {item.key.decode(): _value(item) for item in found}

    async def list(self, prefix: str) -> dict[str, Value]:
        """All values whose key begins with `prefix`, in key order, as they stood at one moment.

        For small values: a page of them must fit into an answer of 4 MiB.
        """
        return {item.key.decode(): _value(item) for item in await self._pages(prefix, keys_only=False)}

    async def keys(self, prefix: str) -> Sequence[str]:
        """All keys that begin with `prefix`, in order, as they stood at one moment."""
        return [item.key.decode() for item in await self._pages(prefix, keys_only=True)]

    async def _pages(self, prefix: str, *, keys_only: bool) -> Sequence[Any]:
        found: list[Any] = []
        first, end, revision = prefix.encode(), prefix_range_end(prefix.encode()), 0
        while True:
            answer = await self._call(
                self._client.kv.get(first, range_end=end, revision=revision, limit=PAGE, keys_only=keys_only)
            )
            found += answer.kvs
            if not answer.more or not answer.kvs:
                return found
            first, revision = bytes(answer.kvs[-1].key) + b"\0", answer.header.revision

    async def put(self, key: str, data: bytes, lease: Lease | None = None) -> None:
        await self._call(self._client.kv.put(key.encode(), data, lease=lease.id if lease else 0))

    async def put_all(self, values: Mapping[str, bytes]) -> None:
        """As many at a time as etcd takes: one transaction is as fast as one value. None may exceed what it takes."""
        await self._write([_put(key, data) for key, data in values.items()])

    async def delete_all(self, *keys: str) -> None:
        await self._write([_deletion(key) for key in keys])

    async def put_for(self, key: str, data: bytes, ttl_s: int) -> None:
        """Write a value that disappears after `ttl_s` unless it is written again: a heart-beat's word."""
        granted = await self._call(self._client.lease.grant(ttl=ttl_s))
        await self._call(self._client.kv.put(key.encode(), data, lease=int(granted.ID)))

    async def replace_for(self, prefix: str, values: Mapping[str, bytes], ttl_s: int) -> None:
        """Let these be all that stands under a prefix; they disappear after `ttl_s` unless they are written again."""
        gone = (await self.list(prefix)).keys() - values.keys()
        operations = [_deletion(key) for key in sorted(gone)]
        if values:
            lease = int((await self._call(self._client.lease.grant(ttl=ttl_s))).ID)
            operations += [_put(key, data, lease) for key, data in values.items()]
        await self._write(operations)

    async def delete(self, key: str) -> bool:
        """Whether there was something to delete."""
        return bool((await self._call(self._client.kv.delete(key.encode()))).deleted)

    async def swap(self, key: str, data: bytes, expected_revision: int, lease: Lease | None = None) -> bool:
        """Write only if the key's mod revision is still `expected_revision` (0: it does not exist)."""
        compare = Compare(
            key=key.encode(),
            target=Compare.CompareTarget.MOD,
            result=Compare.CompareResult.EQUAL,
            mod_revision=expected_revision,
        )
        put = _put(key, data, lease.id if lease else 0)
        return bool((await self._call(self._client.kv.txn([compare], [put]))).succeeded)

    async def lease(self, ttl_s: int) -> Lease:
        """A lease that is kept alive until released or lost."""
        asked_s = asyncio.get_running_loop().time()
        answer = await self._call(self._client.lease.grant(ttl=ttl_s))
        return Lease(self._client, int(answer.ID), ttl_s, asked_s)

    async def watch(self, prefix: str) -> AsyncGenerator[tuple[Change, ...], None]:
        """Changes under a prefix from now on, forever; a broken stream goes on behind the last revision seen.

        When etcd has already forgotten that revision, the changes in between are lost: read the prefix again after
        every empty tuple, which says that this happened.
        """
        raw = prefix.encode()
        revision = (
            await self._call(self._client.kv.get(raw, range_end=prefix_range_end(raw), limit=1))
        ).header.revision
        while True:
            try:
                async for answer in self._client.watch.watch(
                    raw, range_end=prefix_range_end(raw), start_revision=revision + 1
                ):
                    revision = max(revision, answer.header.revision)
                    if answer.compact_revision:
                        revision = answer.compact_revision
                        yield ()
                        break
                    if answer.events:
                        yield tuple(_change(event) for event in answer.events)
            except (EtcdError, grpc.aio.AioRpcError) as error:
                log.info("watching etcd again: %s", _words(error))
            await asyncio.sleep(WATCH_RETRY_S)

    async def campaign(self, key: str, name: str, ttl_s: int) -> Leadership:
        """Wait until elected; the key then holds `name` while the lease lives. Raises Unavailable when etcd is away."""
        lease = await self.lease(ttl_s)
        try:
            while not lease.lost.is_set():
                if await self.swap(key, name.encode(), 0, lease):
                    value = await self.get(key)
                    if value is not None and value.data == name.encode():
                        return Leadership(key, value.create_revision, lease)
                await self._until_gone(key, lease)
        except BaseException:
            await lease.release()
            raise
        raise Unavailable("the lease was lost while waiting to be elected; etcd is slow or away", code="lease_lost")

    async def leader(self, key: str) -> str:
        """Who holds an election's key, empty when nobody does."""
        value = await self.get(key)
        return value.data.decode() if value else ""

    async def _until_gone(self, key: str, lease: Lease) -> None:
        """Return when the key may be free; a look every second covers a missed change."""
        changes = self.watch(key)
        waiting = asyncio.ensure_future(anext(changes))
        lost = asyncio.ensure_future(lease.lost.wait())
        try:
            while await self.get(key) is not None and not lease.lost.is_set():
                done, _ = await asyncio.wait({waiting, lost}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                if waiting in done:
                    return
        finally:
            for task in (waiting, lost):
                task.cancel()
            await asyncio.gather(waiting, lost, return_exceptions=True)
            await changes.aclose()

    async def _write(self, operations: Sequence[RequestOp]) -> None:
        """In as few transactions as etcd takes."""
        together: list[RequestOp] = []
        size = 0
        for operation in operations:
            more = operation.ByteSize()
            if together and (len(together) == PAGE or size + more > MAX_TRANSACTION_BYTES):
                await self._call(self._client.kv.txn([], together))
                together, size = [], 0
            together.append(operation)
            size += more
        if together:
            await self._call(self._client.kv.txn([], together))

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(call, CALL_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable(f"etcd at {', '.join(self._endpoints)} does not answer", code="etcd_away") from None
        except (EtcdError, grpc.aio.AioRpcError) as error:
            # The client translates only some refusals; a lease that etcd has forgotten comes as gRPC's own error.
            raise Unavailable(f"etcd at {', '.join(self._endpoints)}: {_words(error)}", code="etcd_away") from error


def _words(error: Exception) -> str:
    details = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return details or "no answer"


def _put(key: str, data: bytes, lease: int = 0) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key.encode(), value=data, lease=lease))


def _deletion(key: str) -> RequestOp:
    return RequestOp(request_delete_range=DeleteRangeRequest(key=key.encode()))


def _value(item: Any) -> Value:
    return Value(bytes(item.value), int(item.mod_revision), int(item.create_revision))


def _change(event: Any) -> Change:
    deleted = event.type == 1
    return Change(event.kv.key.decode(), None if deleted else _value(event.kv))


async def _resolved(endpoints: list[str]) -> tuple[list[str], str | None]:
    """Addresses, which is all that the library takes, and the name that the servers' certificates are held against.

    Names are looked up once: a Service's address stays. Servers that have names must share one certificate name.
    """
    addresses, name = [], None
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        try:
            ipaddress.ip_address(host)
        except ValueError:
            name = name or host
            host = await _address_of(host)
        addresses.append(f"{host}:{port}")
    return addresses, name


async def _address_of(host: str) -> str:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, family=socket.AF_INET)
    except OSError as error:
        raise Unavailable(f"the etcd server {host} has no address: {error.strerror}", code="no_etcd") from None
    return str(found[0][4][0])
