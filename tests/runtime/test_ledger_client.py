"""Many transactions of one key at once: in order of their nonces, recorded before they are sent, none lost or twice.

STAND-IN: a ledger that takes every transaction whose nonce is the next one; tests/e2e has the real one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from talkoo_api.ledger.v1 import service_pb2, state_pb2, tx_pb2

from talkoo_core.errors import Conflict, NotFound, TalkooError
from talkoo_core.signing import PrivateKey
from talkoo_runtime.grpc_errors import CODE_KEY, FAMILY_KEY
from talkoo_runtime.ledger_client import LedgerClient
from talkoo_runtime.transactions import transaction_hash

MESSAGE = tx_pb2.CancelTask(task_id="task-1")
NONCE = 7


def nonce_of(signed: bytes) -> int:
    return int(tx_pb2.TxBody.FromString(tx_pb2.SignedTx.FromString(signed).body).nonce)


class Ledger:
    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.sending = 0
        self.refuse: dict[int, TalkooError] = {}
        """By nonce, once."""
        self.gate: asyncio.Event | None = None

    async def GetStatus(self, request: Any, timeout: float) -> service_pb2.Status:  # noqa: N802
        return service_pb2.Status(chain_id="chain")

    async def GetParams(self, request: Any, timeout: float) -> state_pb2.Params:  # noqa: N802
        return state_pb2.Params(min_fee_utlk=1)

    async def Get(self, request: Any, timeout: float) -> service_pb2.GetResponse:  # noqa: N802
        account = state_pb2.Account(nonce=NONCE + len(self.taken))
        return service_pb2.GetResponse(value=account.SerializeToString())

    async def Broadcast(self, request: Any, timeout: float) -> service_pb2.BroadcastResponse:  # noqa: N802
        self.sending += 1
        assert self.sending == 1, "one after the other"
        try:
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
            nonce = nonce_of(request.tx)
            refusal = self.refuse.pop(nonce, None)
            if refusal is None and nonce != NONCE + len(self.taken):
                refusal = Conflict(f"nonce {nonce}", code="nonce_gap")
            if refusal is not None:
                raise _rpc(refusal)
            self.taken.append(request.tx)
            return service_pb2.BroadcastResponse()
        finally:
            self.sending -= 1

    async def WaitTx(self, request: Any, timeout: float) -> service_pb2.TxResult:  # noqa: N802
        if request.hash not in [transaction_hash(each) for each in self.taken]:
            raise AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "not known")
        return service_pb2.TxResult(hash=request.hash)


def _rpc(error: TalkooError) -> AioRpcError:
    trailing = Metadata((FAMILY_KEY, error.family), (CODE_KEY, error.code))
    return AioRpcError(grpc.StatusCode.ABORTED, Metadata(), trailing, error.message)


@pytest.fixture(name="ledger")
def _ledger() -> Ledger:
    return Ledger()


@pytest.fixture(name="client")
def _client(ledger: Ledger) -> LedgerClient:
    return LedgerClient(ledger, PrivateKey.from_seed(bytes(32)))


async def test_many_at_once_are_sent_in_order_each_recorded_before(ledger: Ledger, client: LedgerClient) -> None:
    recorded: list[bytes] = []

    async def record(signed: bytes) -> None:
        await asyncio.sleep(0)
        recorded.append(signed)
        assert signed not in ledger.taken

    await asyncio.gather(*(client.submit(MESSAGE, record=record) for _ in range(20)))
    assert [nonce_of(each) for each in ledger.taken] == list(range(NONCE, NONCE + 20))
    assert recorded == ledger.taken, "and none was signed twice"


async def test_one_is_signed_and_recorded_while_the_one_before_it_is_sent(ledger: Ledger, client: LedgerClient) -> None:
    recorded: list[int] = []

    async def record(signed: bytes) -> None:
        recorded.append(nonce_of(signed))

    ledger.gate = asyncio.Event()
    both = [asyncio.create_task(client.submit(MESSAGE, record=record)) for _ in range(2)]
    async with asyncio.timeout(5):
        while len(recorded) < 2:
            await asyncio.sleep(0)
    assert not ledger.taken
    ledger.gate.set()
    await asyncio.gather(*both)
    assert recorded == [NONCE, NONCE + 1]


async def test_one_that_could_not_be_recorded_leaves_no_gap(ledger: Ledger, client: LedgerClient) -> None:
    async def fails(signed: bytes) -> None:
        raise NotFound("its object is gone")

    done = await asyncio.gather(
        client.submit(MESSAGE), client.submit(MESSAGE, record=fails), client.submit(MESSAGE), return_exceptions=True
    )
    assert [isinstance(each, NotFound) for each in done] == [False, True, False]
    assert [nonce_of(each) for each in ledger.taken] == [NONCE, NONCE + 1]


@pytest.mark.parametrize("code", ["not_yours", "nonce_too_low"])
async def test_what_comes_after_one_that_was_refused_is_signed_anew_and_recorded_again(
    ledger: Ledger, client: LedgerClient, code: str
) -> None:
    recorded: dict[int, list[bytes]] = {number: [] for number in range(3)}

    async def one(number: int) -> Any:
        async def record(signed: bytes) -> None:
            recorded[number].append(signed)

        return await client.submit(MESSAGE, memo=str(number), record=record)

    ledger.refuse[NONCE] = Conflict("refused", code=code)
    done = await asyncio.gather(*(one(number) for number in range(3)), return_exceptions=True)
    refused = [number for number, each in enumerate(done) if isinstance(each, BaseException)]
    assert refused == ([0] if code == "not_yours" else [])
    left = [number for number in range(3) if number not in refused]
    assert sorted(ledger.taken) == sorted(recorded[number][-1] for number in left), "the last record is what was sent"
    assert [nonce_of(each) for each in ledger.taken] == list(range(NONCE, NONCE + len(left)))
