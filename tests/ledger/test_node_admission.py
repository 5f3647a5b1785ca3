"""Who may speak to a ledger node, and what becomes of those who speak nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, tx_pb2
from talkoo_consensus.encoding import encode_proposal, encode_vote
from talkoo_consensus.types import BlockId, Proposal, SignedType, Vote

from talkoo_core.errors import Conflict, InsufficientFunds, InvalidInput, PermissionDenied, TalkooError
from talkoo_core.signing import PrivateKey
from talkoo_runtime.grpc_client import error_from_rpc
from talkoo_runtime.transactions import sign_transaction
from talkoo_sim.ledger_chain import CHAIN_ID, address, key_of, make_genesis

THREE = ("north", "east", "south")
CALL_S = 60.0
"""For one call, on a machine that is busy with other things."""


async def refusal(call: Any) -> TalkooError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in call:
            pass
    return error_from_rpc(refused.value)


async def silence() -> AsyncIterator[service_pb2.PeerMessage]:
    """Whoever is still writing when the stream ends may see gRPC's own error instead of ours."""
    await asyncio.Event().wait()
    yield service_pb2.PeerMessage()


def consensus(channel: grpc.aio.Channel) -> Any:
    return service_pb2_grpc.ConsensusStub(channel)  # type: ignore[no-untyped-call]


async def test_strangers_and_those_with_another_role_are_refused(ledgers: Any) -> None:
    ledgers.start(*THREE)
    await ledgers.reach(1, *THREE)
    assert isinstance(await refusal(consensus(ledgers.channel("north")).Exchange(silence())), PermissionDenied)
    with pytest.raises(PermissionDenied, match="gateway west-gateway of west may not call this"):
        stub = service_pb2_grpc.LedgerStub(ledgers.channel("west", to="north"))  # type: ignore[no-untyped-call]
        await _status(stub)
    trust = (ledgers.folder / "trust.pem").read_bytes()
    target = f"127.0.0.1:{ledgers.ports['north']}"
    async with grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(trust)) as nameless:
        refused = await refusal(consensus(nameless).Exchange(silence(), timeout=CALL_S))
        assert refused.family in ("unavailable", "permission_denied")


async def _status(stub: Any) -> Any:
    try:
        return await stub.GetStatus(service_pb2.GetStatusRequest(), timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None


async def test_a_node_with_another_genesis_is_refused_and_the_others_go_on(ledgers: Any) -> None:
    other = ledgers.folder / "other-genesis.json"
    other.write_bytes(make_genesis(min_fee_utlk=7).canonical_json())
    ledgers.write_settings("west", genesis=str(other))
    ledgers.start()
    await ledgers.reach(3, *THREE)

    async def told() -> bool:
        return "refused west: it has another genesis" in ledgers.log("north") and "is not ours" in ledgers.log("west")

    await ledgers.eventually(told, "both sides say why")
    assert (await ledgers.height("west")) == 0


async def test_a_node_with_another_members_certificate_cannot_start(ledgers: Any) -> None:
    ledgers.write_settings("west", organization="elsewhere")
    ledgers.start("west")
    process = ledgers.processes["west"]

    async def stopped() -> bool:
        return process.poll() is not None

    await ledgers.eventually(stopped, "the node stops")
    assert process.returncode == InvalidInput.exit_status
    assert "is one of west, the settings are those of 'elsewhere'" in ledgers.log("west")


async def test_replayed_malformed_and_unpayable_transactions_are_refused_at_once(ledgers: Any) -> None:
    ledgers.start(*THREE)
    await ledgers.reach(1, *THREE)
    alice = ledgers.client("north", "alice")
    stub = service_pb2_grpc.LedgerStub(ledgers.channel("north"))  # type: ignore[no-untyped-call]
    fee = (await alice.params()).min_fee_utlk
    signed = sign_transaction(key_of("alice"), CHAIN_ID, 0, fee, tx_pb2.Transfer(to=address("bob"), amount_utlk=1))
    await _broadcast(stub, signed)
    await alice.wait_tx((await stub.Broadcast(service_pb2.BroadcastRequest(tx=signed))).hash)
    with pytest.raises(Conflict, match="nonce"):
        await _broadcast(stub, signed)
    with pytest.raises(InvalidInput):
        await _broadcast(stub, b"\xff not a transaction")
    poor = PrivateKey.from_seed(b"p" * 32)
    with pytest.raises(InsufficientFunds):
        await _broadcast(
            stub, sign_transaction(poor, CHAIN_ID, 0, fee, tx_pb2.Transfer(to=address("bob"), amount_utlk=1))
        )
    assert (await alice.account(address("alice"))).nonce == 1


async def _broadcast(stub: Any, data: bytes) -> None:
    try:
        await stub.Broadcast(service_pb2.BroadcastRequest(tx=data), timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from None


def nonsense(height: int) -> list[service_pb2.PeerMessage]:
    """Of a member with a good certificate: broken bytes, wrong signatures, far-away rounds and empty words."""
    block_id, message = BlockId(b"b" * 32, 1, b"p" * 32), service_pb2.PeerMessage
    key = key_of("west-consensus")
    unsigned = Vote(SignedType.PREVOTE, height, 0, block_id, 1, key.public.address, 3, bytes(64))
    stranger = Vote(SignedType.PREVOTE, height, 0, block_id, 1, b"s" * 20, 3, bytes(64))
    far = encode_proposal(Proposal(height, 2**31 - 1, -1, block_id, 1, bytes(64)))
    return [
        message(vote=b"\xff\xff\xff"),
        message(vote=encode_vote(unsigned)),
        message(vote=encode_vote(stranger)),
        message(proposal=b"\x00"),
        message(proposal=far),
        message(block=service_pb2.BlockData(height=height, round=2**31 - 1, block=b"\x01\x02")),
        message(proposal=encode_proposal(Proposal(height, 0, -1, block_id, 1, bytes(64)))),
        message(block=service_pb2.BlockData(height=height, round=0, block=b"\x01\x02")),
        message(txs=service_pb2.TxBatch(txs=[b"", b"\xff" * 100])),
        message(step=service_pb2.RoundStep(height=2**63, round=2**31, step=77)),
        message(),
    ]


async def test_a_member_that_speaks_nonsense_is_dropped_and_blocks_go_on(ledgers: Any) -> None:
    ledgers.start(*THREE)
    await ledgers.reach(1, *THREE)
    height = await ledgers.height("north")
    hello = service_pb2.Hello(chain_id=CHAIN_ID, genesis_sha256=ledgers.genesis.sha256(), organization="west")

    async def speech() -> AsyncIterator[service_pb2.PeerMessage]:
        yield service_pb2.PeerMessage(hello=hello)
        while True:
            # The height goes on meanwhile; some of it must meet the height under way.
            for ahead in range(3):
                for message in nonsense(height + ahead):
                    yield message
            await asyncio.sleep(0.01)

    stub = consensus(ledgers.channel("west", "ledger", to="north"))
    channel = ledgers.channel("west", "ledger", to="north")
    await channel.channel_ready()  # the refusal lasts a few seconds: nothing slow may come between
    await asyncio.wait_for(refusal(stub.Exchange(speech())), CALL_S)
    # Whoever is still writing when the stream ends may see gRPC's own error; one who only says hello sees ours.
    again = consensus(channel).Exchange(iter([service_pb2.PeerMessage(hello=hello)]))
    refused = await asyncio.wait_for(refusal(again), CALL_S)
    assert "closed the stream of west after 16 faulty messages" in ledgers.log("north")
    assert refused.code == "faulty_peer", refused
    await ledgers.reach(height + 5, *THREE)
    assert ledgers.log("north").count("dropped a") == 1


async def test_a_message_too_large_closes_the_stream(ledgers: Any) -> None:
    ledgers.start(*THREE)
    await ledgers.reach(1, *THREE)
    hello = service_pb2.Hello(chain_id=CHAIN_ID, genesis_sha256=ledgers.genesis.sha256(), organization="west")
    huge = service_pb2.PeerMessage(txs=service_pb2.TxBatch(txs=[bytes(5 * 1024 * 1024)]))
    stub = consensus(ledgers.channel("west", "ledger", to="north"))
    call = stub.Exchange(iter([service_pb2.PeerMessage(hello=hello), huge]))
    assert "a message of 5242" in (await refusal(call)).message
    await ledgers.reach((await ledgers.height("north")) + 2, *THREE)
