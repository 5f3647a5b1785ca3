"""A client of the ledger for services, the SDK and the command line.

It signs, numbers and sends transactions and reads the state. Works over the ledger's own service and over the gateway,
which serves the same calls. One instance owns the nonces of its key: use one per key and process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from talkoo_api.ledger.v1 import service_pb2, state_pb2

from talkoo_core.errors import Conflict, Exhausted, Unavailable, error_of
from talkoo_core.signing import PrivateKey
from talkoo_runtime.grpc_client import raise_from_rpc
from talkoo_runtime.keys import address_of
from talkoo_runtime.transactions import sign_transaction, transaction_hash

log = logging.getLogger(__name__)
T = TypeVar("T")
M = TypeVar("M", bound=Message)

SUBMIT_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 10.0
WAIT_SLICE_S = 5.0
MAX_NONCE_ATTEMPTS = 8
RECONNECT_FIRST_S = 0.2
RECONNECT_MAX_S = 5.0
PAGE = 1000


class LedgerClient:
    """`stub` is a `LedgerStub` or a `GatewayStub`: both serve these calls."""

    def __init__(self, stub: Any, key: PrivateKey | None = None) -> None:
        self._stub = stub
        self._key = key
        self._nonce: int | None = None
        """Of the next transaction; None: to be read from the ledger."""
        self._signing, self._sending = asyncio.Lock(), asyncio.Lock()
        """Taken one within the other, so that transactions are sent in the order of their nonces; one is signed and
        recorded while the one before it is sent."""
        self._params: state_pb2.Params | None = None
        self._chain_id = ""

    @property
    def address(self) -> str:
        assert self._key is not None, "this client only reads"
        return address_of(self._key)

    async def submit(
        self,
        message: Message,
        *,
        memo: str = "",
        wait: bool = True,
        timeout_s: float = SUBMIT_TIMEOUT_S,
        record: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> service_pb2.TxResult:
        """Sign, send and (by default) wait until final.

        `record` gets the signed bytes before they are sent: whoever keeps them can `resume` after a crash, and nothing
        is done twice.

        Raises the ledger's typed error when the transaction is refused or fails, and Unavailable when it is not final
        in `timeout_s`: its fate is then open, and only `wait_tx` with its hash can tell. The same bytes are sent again
        when the connection breaks, so nothing is done twice.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        for _ in range(MAX_NONCE_ATTEMPTS):
            async with self._signing:
                signed, nonce = await self._sign_next(message, memo, deadline)
                if record is not None:
                    await record(signed)
                if self._nonce == nonce:  # unless one before it was refused meanwhile
                    self._nonce = nonce + 1
                await self._sending.acquire()
            try:
                await self._broadcast(signed, deadline)
            except Conflict as error:
                if not error.code.startswith("nonce"):
                    self._nonce = nonce if self._nonce == nonce + 1 else None  # it is free again
                    raise
                self._nonce = None
                mine = await self._final_result(transaction_hash(signed))
                if mine is None:
                    continue
                return _checked(mine)
            except BaseException:
                self._nonce = None
                raise
            finally:
                self._sending.release()
            if not wait:
                return service_pb2.TxResult(hash=transaction_hash(signed))
            return _checked(await self.wait_tx(transaction_hash(signed), deadline=deadline, resend=signed))
        raise Conflict(
            f"the account's nonce changed {MAX_NONCE_ATTEMPTS} times in a row; is its key in use somewhere else?",
            code="nonce_contended",
        )

    async def resume(self, signed: bytes, *, timeout_s: float = SUBMIT_TIMEOUT_S) -> service_pb2.TxResult:
        """Bring a transaction that was signed before a crash to its end, sent or not. Raises as `submit` does.

        Raises Conflict (code `superseded`) when it never was final and never can be, as its nonce went to another one:
        what it should do may then be signed anew.
        """
        known = await self._final_result(transaction_hash(signed))
        if known is not None:
            return _checked(known)
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            await self._broadcast(signed, deadline)
        except Conflict as error:
            if not error.code.startswith("nonce"):
                raise
            known = await self._final_result(transaction_hash(signed))
            if known is None:
                raise Conflict("the transaction's nonce was used by another one", code="superseded") from None
            return _checked(known)
        self._nonce = None
        return _checked(await self.wait_tx(transaction_hash(signed), deadline=deadline, resend=signed))

    async def wait_tx(
        self, tx_hash: bytes, *, timeout_s: float = SUBMIT_TIMEOUT_S, deadline: float | None = None, resend: bytes = b""
    ) -> service_pb2.TxResult:
        """Wait until a transaction is final; `resend` is sent again now and then in case a node lost it in a crash."""
        now = asyncio.get_running_loop().time
        end = now() + timeout_s if deadline is None else deadline
        while True:
            left = max(end - now(), 0.0)
            slice_ms = int(min(left, WAIT_SLICE_S) * 1000)
            try:
                request = service_pb2.WaitTxRequest(hash=tx_hash, timeout_ms=slice_ms)
                return await _translated(self._stub.WaitTx(request, timeout=slice_ms / 1000 + READ_TIMEOUT_S))
            except Unavailable:
                if now() >= end:
                    raise Unavailable(
                        f"transaction {tx_hash.hex()[:16]} is not final yet; look again with its hash",
                        code="not_final_yet",
                    ) from None
                await asyncio.sleep(min(RECONNECT_FIRST_S, max(end - now(), 0.0)))
            if resend:
                await self._resend(resend)

    async def account(self, address: str) -> state_pb2.Account:
        return await self.get("accounts", address, state_pb2.Account)

    async def node(self, node_id: str) -> state_pb2.Node:
        return await self.get("nodes", node_id, state_pb2.Node)

    async def task(self, task_id: str) -> state_pb2.Task:
        return await self.get("tasks", task_id, state_pb2.Task)

    async def segment(self, task_id: str, attempt: int, segment: int) -> state_pb2.Segment:
        return await self.get("segments", f"{task_id}/{attempt:06d}/{segment:06d}", state_pb2.Segment)

    async def get(self, module: str, key: str, kind: type[M]) -> M:
        """One value. Raises NotFound."""
        request = service_pb2.GetRequest(module=module, key=key)
        response = await _translated(self._stub.Get(request, timeout=READ_TIMEOUT_S))
        return kind.FromString(response.value)

    async def list(self, module: str, kind: type[M], *, prefix: str = "", most: int = 100_000) -> list[M]:
        """All values of a module in key order, page by page, at most `most`."""
        found: list[M] = []
        after = ""
        while len(found) < most:
            request = service_pb2.ListRequest(
                module=module, prefix=prefix, after=after, limit=min(PAGE, most - len(found))
            )
            response = await _translated(self._stub.List(request, timeout=READ_TIMEOUT_S))
            found.extend(kind.FromString(entry.value) for entry in response.entries)
            if not response.more or not response.entries:
                break
            after = response.entries[-1].key
        return found

    async def params(self) -> state_pb2.Params:
        """The ledger's parameters, read once."""
        if self._params is not None:
            return self._params
        call = self._stub.GetParams(service_pb2.GetParamsRequest(), timeout=READ_TIMEOUT_S)
        params: state_pb2.Params = await _translated(call)
        self._params = params
        return params

    async def status(self) -> service_pb2.Status:
        return await _translated(self._stub.GetStatus(service_pb2.GetStatusRequest(), timeout=READ_TIMEOUT_S))

    async def follow(self, from_height: int = 0) -> AsyncIterator[service_pb2.BlockEvents]:
        """Events of each block, forever: a broken stream is resumed behind the last height seen, none is skipped."""
        next_height = from_height
        pause = RECONNECT_FIRST_S
        while True:
            try:
                stream = self._stub.Follow(service_pb2.FollowRequest(from_height=next_height))
                async for block in stream:
                    if next_height and block.height < next_height:
                        continue
                    next_height = block.height + 1
                    pause = RECONNECT_FIRST_S
                    yield block
                reason = "the ledger ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = _recoverable(error)
            except (Unavailable, Exhausted) as error:
                reason = error.message
            log.info("following the ledger again from height %d in %.1f s: %s", next_height, pause, reason)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RECONNECT_MAX_S)

    async def _sign_next(self, message: Message, memo: str, deadline: float) -> tuple[bytes, int]:
        assert self._key is not None, "this client only reads"
        while not self._chain_id or self._nonce is None:
            try:
                self._chain_id = (await self.status()).chain_id
                self._nonce = (await self.account(self.address)).nonce
            except Unavailable:
                await _pause_until(deadline)
        nonce = self._nonce
        assert nonce is not None
        fee = (await self.params()).min_fee_utlk
        return sign_transaction(self._key, self._chain_id, nonce, fee, message, memo), nonce

    async def _broadcast(self, signed: bytes, deadline: float) -> None:
        while True:
            try:
                request = service_pb2.BroadcastRequest(tx=signed)
                await _translated(self._stub.Broadcast(request, timeout=READ_TIMEOUT_S))
                return
            except Unavailable:
                await _pause_until(deadline)

    async def _resend(self, signed: bytes) -> None:
        try:
            await _translated(self._stub.Broadcast(service_pb2.BroadcastRequest(tx=signed), timeout=READ_TIMEOUT_S))
        except (Conflict, Unavailable, Exhausted) as error:
            log.debug("sending a transaction again was answered: %s", error)

    async def _final_result(self, tx_hash: bytes) -> service_pb2.TxResult | None:
        """The result of a transaction that may already be final, or None when it is not known."""
        try:
            return await _translated(
                self._stub.WaitTx(service_pb2.WaitTxRequest(hash=tx_hash, timeout_ms=0), timeout=READ_TIMEOUT_S)
            )
        except Unavailable:
            return None


def _checked(result: service_pb2.TxResult) -> service_pb2.TxResult:
    if result.code != 0:
        raise error_of(result.family, result.message, result.error_code)
    return result


def _recoverable(error: grpc.aio.AioRpcError) -> str:
    """The reason of a broken stream; a refusal that trying again cannot cure is raised instead."""
    try:
        raise_from_rpc(error)
    except (Unavailable, Exhausted) as known:
        return known.message


async def _translated(call: Awaitable[T]) -> T:
    """Await a call and turn its gRPC status back into our error family."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise_from_rpc(error)


async def _pause_until(deadline: float) -> None:
    """Wait a little before another try; raises Unavailable when no time is left."""
    left = deadline - asyncio.get_running_loop().time()
    if left <= 0:
        raise Unavailable("the ledger node cannot be reached; is it running? (`talkoo doctor`)", code="ledger_away")
    await asyncio.sleep(min(RECONNECT_FIRST_S, left))
