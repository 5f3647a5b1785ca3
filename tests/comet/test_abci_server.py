"""The ledger as an ABCI server, spoken to over its socket as CometBFT does."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from talkoo_api.abci.v1 import abci_pb2
from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_consensus.chain import make_block
from talkoo_consensus.encoding import block_id_of, header_hash, results_hash
from talkoo_consensus.types import EMPTY_COMMIT, Block, BlockIdFlag, Commit, CommitSig
from talkoo_consensus.types import TxResult as ConsensusResult
from talkoo_ledger.abci.hosted import HostedLedger
from talkoo_ledger.abci.requests import Requests
from talkoo_ledger.abci.server import MAX_MESSAGE_BYTES, AbciServer
from talkoo_ledger.application import Application, CheckResult, FinalizeRequest, FinalizeResponse
from talkoo_ledger.executor import Executor
from talkoo_ledger.genesis import Genesis
from talkoo_ledger.mempool import MAX_PER_SENDER
from talkoo_ledger.query import answer
from talkoo_ledger.snapshots import FORMAT, SnapshotStore, chunks_of

from talkoo_core.errors import Conflict, Corrupt, InvalidInput
from talkoo_runtime.clock import SystemClock
from talkoo_runtime.transactions import sign_transaction
from talkoo_sim.abci_client import AbciClient, varint
from talkoo_sim.ledger_chain import address, key_of, make_genesis

FEE = 100


def transfer(nonce: int, amount_utlk: int = 5, sender: str = "alice") -> bytes:
    return sign_transaction(
        key_of(sender), make_genesis().chain_id, nonce, FEE, tx_pb2.Transfer(to=address("bob"), amount_utlk=amount_utlk)
    )


class Told:
    """Notes what the engine asked."""

    def __init__(self) -> None:
        self.checks: list[tuple[bool, bool]] = []
        self.final: list[bytes] = []

    def checked(self, data: bytes, result: CheckResult, *, again: bool) -> None:
        self.checks.append((result.code == 0, again))

    def committed(self, hashes: list[bytes]) -> int:
        self.final += hashes
        return 0


class Served:
    """A hosted ledger in a folder behind a socket."""

    def __init__(self, folder: Path, genesis: Genesis | None = None) -> None:
        self.folder = folder
        self.told = Told()
        self.engines: list[AbciClient] = []
        self.ledger = HostedLedger(genesis or make_genesis(), folder, SystemClock())
        self.snapshots = SnapshotStore(folder / "snapshots")
        self.server = AbciServer(folder / "abci" / "socket", Requests(self.ledger, self.snapshots, self.told).answer)

    async def connect(self) -> AbciClient:
        self.engines.append(await AbciClient.connect(self.server.path))
        return self.engines[-1]

    async def close(self) -> None:
        await self.server.stop()
        for engine in self.engines:
            engine.writer.close()
            with contextlib.suppress(ConnectionError):
                await engine.writer.wait_closed()
        self.ledger.store.close()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(tmp_path / "ledger")
    await served.server.start()
    yield served
    await served.close()
    assert not served.server.path.parent.exists()


def init_chain(genesis: Genesis, **changes: Any) -> abci_pb2.InitChainRequest:
    values: dict[str, Any] = {
        "time": Timestamp(seconds=genesis.genesis_time_ns // 10**9, nanos=genesis.genesis_time_ns % 10**9),
        "chain_id": genesis.chain_id,
        "validators": [
            abci_pb2.ValidatorUpdate(
                power=each.stake_utlk, pub_key_bytes=bytes.fromhex(each.consensus_key), pub_key_type="ed25519"
            )
            for each in genesis.organizations
        ],
        "app_state_bytes": f'"{genesis.sha256().hex()}"'.encode(),
        "initial_height": 1,
    }
    return abci_pb2.InitChainRequest(**values | changes)


def finalize(block: Block) -> abci_pb2.FinalizeBlockRequest:
    header = block.header
    return abci_pb2.FinalizeBlockRequest(
        txs=block.data.txs,
        hash=header_hash(header),
        height=header.height,
        time=Timestamp(seconds=header.time_ns // 10**9, nanos=header.time_ns % 10**9),
        proposer_address=header.proposer_address,
    )


def our_engines_blocks(folder: Path, batches: list[list[bytes]]) -> tuple[list[Block], Executor]:
    """Blocks of the production executor, without the votes: what is compared is what executing them gives."""
    executor = Executor(make_genesis(), folder, SystemClock())
    blocks = []
    commit = EMPTY_COMMIT
    for number, txs in enumerate(batches):
        proposer = executor.chain.validators.proposer
        block = make_block(executor.chain, txs, commit, executor.chain.last_time_ns + 10**9, proposer.address)
        block_id = block_id_of(block)
        signer = CommitSig(BlockIdFlag.COMMIT, proposer.address, block.header.time_ns, bytes(64))
        commit = Commit(number + 1, 0, block_id, (signer,))
        executor.execute(0, block_id, block, commit)
        blocks.append(block)
    return blocks, executor


async def test_echo_and_flush_come_back_in_the_order_of_the_requests(served: Served) -> None:
    engine = await served.connect()
    for number in range(300):
        engine.send(echo=abci_pb2.EchoRequest(message=str(number)))
    engine.send(flush=abci_pb2.FlushRequest())
    echoes = [(await engine.read()).echo.message for _ in range(300)]
    assert echoes == [str(number) for number in range(300)]
    assert (await engine.read()).WhichOneof("value") == "flush"


async def test_a_request_that_arrives_byte_by_byte_is_answered(served: Served) -> None:
    engine = await served.connect()
    raw = abci_pb2.Request(echo=abci_pb2.EchoRequest(message="x" * 300)).SerializeToString()
    for byte in varint(len(raw)) + raw:
        engine.writer.write(bytes([byte]))
        await engine.writer.drain()
        await asyncio.sleep(0)
    assert (await engine.read()).echo.message == "x" * 300


async def test_pipelined_checks_follow_the_nonces_of_those_before(served: Served) -> None:
    engine = await served.connect()
    for nonce in (0, 1, 3, 2):
        engine.send(check_tx=abci_pb2.CheckTxRequest(tx=transfer(nonce), type=abci_pb2.CHECK_TX_TYPE_CHECK))
    answers = [(await engine.read()).check_tx for _ in range(4)]
    assert [answer.code == 0 for answer in answers] == [True, True, False, True]
    assert (answers[2].codespace, answers[2].info) == ("conflict", "nonce_gap")
    assert "nonce" in answers[2].log
    assert served.told.checks == [(True, False), (True, False), (False, False), (True, False)]


async def test_a_sender_has_its_share_of_the_engines_mempool(served: Served, tmp_path: Path) -> None:
    """What waits counts, until a block; then what is checked again."""
    engine = await served.connect()
    kinds = [abci_pb2.CHECK_TX_TYPE_CHECK] * (MAX_PER_SENDER + 1)
    for nonce, kind in enumerate(kinds):
        engine.send(check_tx=abci_pb2.CheckTxRequest(tx=transfer(nonce), type=kind))
    answers = [(await engine.read()).check_tx for _ in kinds]
    assert [answer.code == 0 for answer in answers] == [True] * MAX_PER_SENDER + [False]
    assert answers[-1].info == "sender_full"
    other = abci_pb2.CheckTxRequest(tx=transfer(0, sender="bob"), type=abci_pb2.CHECK_TX_TYPE_CHECK)
    assert (await engine.ask(check_tx=other)).check_tx.code == 0
    (block,), executor = our_engines_blocks(tmp_path / "ours", [[transfer(0)]])
    executor.store.close()
    await engine.ask(finalize_block=finalize(block))
    await engine.ask(commit=abci_pb2.CommitRequest())
    for nonce in range(1, MAX_PER_SENDER):
        again = abci_pb2.CheckTxRequest(tx=transfer(nonce), type=abci_pb2.CHECK_TX_TYPE_RECHECK)
        assert (await engine.ask(check_tx=again)).check_tx.code == 0
    last = abci_pb2.CheckTxRequest(tx=transfer(MAX_PER_SENDER), type=abci_pb2.CHECK_TX_TYPE_CHECK)
    assert (await engine.ask(check_tx=last)).check_tx.code == 0


async def test_a_value_is_read_with_its_proof(served: Served) -> None:
    engine = await served.connect()
    path, key = "/store/accounts/key", address("alice").encode()
    found = (await engine.ask(query=abci_pb2.QueryRequest(path=path, data=key, prove=True))).query
    assert (found.code, found.key) == (0, key)
    assert state_pb2.Account.FromString(found.value).address == address("alice")
    ours = answer(served.ledger.application, path, key, 0, prove=True)
    assert [(op.type, op.key, op.data) for op in found.proof_ops.ops] == [
        (op.type, op.key, op.data) for op in ours.proof_ops
    ]
    wrong = (await engine.ask(query=abci_pb2.QueryRequest(path="/nowhere", data=key))).query
    assert wrong.code != 0
    assert "/nowhere" in wrong.log


async def test_blocks_of_our_own_engine_give_the_same_roots_over_abci(served: Served, tmp_path: Path) -> None:
    batches = [[], [transfer(0), transfer(1)], [transfer(7)], [transfer(2), b"garbage"], []]
    blocks, executor = our_engines_blocks(tmp_path / "ours", batches)
    engine = await served.connect()
    began = (await engine.ask(init_chain=init_chain(make_genesis()))).init_chain
    assert began.app_hash == blocks[0].header.app_hash
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        finalized = (await engine.ask(finalize_block=finalize(block))).finalize_block
        results = [
            ConsensusResult(each.code, each.data, each.gas_wanted, each.gas_used) for each in finalized.tx_results
        ]
        chain = executor.chain
        header = following.header if following else None
        assert finalized.app_hash == (header.app_hash if header else chain.app_hash)
        assert results_hash(results) == (header.last_results_hash if header else chain.last_results_hash)
        assert (await engine.ask(commit=abci_pb2.CommitRequest())).WhichOneof("value") == "commit"
    assert served.ledger.application.info() == executor.application.info()
    assert served.ledger.chain.next_validators == executor.chain.next_validators
    executor.store.close()


async def test_a_failed_transaction_says_why_in_its_result(served: Served, tmp_path: Path) -> None:
    (block,), executor = our_engines_blocks(tmp_path / "ours", [[transfer(0, amount_utlk=10**15)]])
    executor.store.close()
    engine = await served.connect()
    (result,) = (await engine.ask(finalize_block=finalize(block))).finalize_block.tx_results
    assert result.code != 0
    assert (result.codespace, result.info) == ("insufficient_funds", "insufficient_funds")
    assert "are missing" in result.log


async def test_what_was_not_committed_is_gone_after_a_restart_and_comes_again(tmp_path: Path) -> None:
    blocks, executor = our_engines_blocks(tmp_path / "ours", [[transfer(0)], [transfer(1)]])
    folder = tmp_path / "ledger"
    for commits in (0, 1):
        served = Served(folder)
        await served.server.start()
        engine = await served.connect()
        info = (await engine.ask(info=abci_pb2.InfoRequest())).info
        assert info.last_block_height == commits
        await engine.ask(finalize_block=finalize(blocks[commits]))
        if not commits:
            await served.close()  # a crash between the two: the block comes again
            served = Served(folder)
            await served.server.start()
            engine = await served.connect()
            assert (await engine.ask(info=abci_pb2.InfoRequest())).info.last_block_height == 0
            await engine.ask(finalize_block=finalize(blocks[0]))
        await engine.ask(commit=abci_pb2.CommitRequest())
        await served.close()
    served = Served(folder)
    assert served.ledger.application.info() == executor.application.info()
    served.ledger.store.close()
    executor.store.close()


async def test_a_block_may_be_finalized_again_before_it_is_committed(served: Served, tmp_path: Path) -> None:
    (block,), executor = our_engines_blocks(tmp_path / "ours", [[transfer(0)]])
    engine = await served.connect()
    first = await engine.ask(finalize_block=finalize(block))
    assert await engine.ask(finalize_block=finalize(block)) == first
    await engine.ask(commit=abci_pb2.CommitRequest())
    assert served.ledger.application.info() == executor.application.info()
    executor.store.close()


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("chain_id", {"chain_id": "other-1"}),
        ("genesis_time", {"time": Timestamp(seconds=1)}),
        ("validators", {"validators": []}),
        ("app_state", {"app_state_bytes": b'"00"'}),
        ("initial_height", {"initial_height": 5}),
    ],
)
async def test_an_engine_with_another_genesis_is_refused(served: Served, what: str, changes: dict[str, Any]) -> None:
    engine = await served.connect()
    answer = await engine.ask(init_chain=init_chain(make_genesis(), **changes))
    assert f"differs from the ledger's in {what}" in answer.exception.error
    with pytest.raises(InvalidInput, match=what):
        await served.server.run()


async def test_a_block_that_is_not_the_next_one_stops_the_node(served: Served, tmp_path: Path) -> None:
    blocks, executor = our_engines_blocks(tmp_path / "ours", [[], []])
    executor.store.close()
    engine = await served.connect()
    assert "waits for 1" in (await engine.ask(finalize_block=finalize(blocks[1]))).exception.error
    with pytest.raises(Corrupt):
        await served.server.run()


async def test_nobody_else_may_open_the_socket(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stat.S_IMODE(served.server.path.parent.stat().st_mode) == 0o700
    monkeypatch.setattr("os.getuid", lambda: 4242)
    with pytest.raises(Conflict, match="another user"):
        await AbciServer(tmp_path / "theirs" / "socket", served.server.answer).start()


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (varint(MAX_MESSAGE_BYTES + 1), "announced"),
        (b"\xff" * 10, "announced"),
        (varint(3) + b"\xff\xff\xff", "cannot be read"),
        (varint(0), "of no kind"),
    ],
)
async def test_garbage_on_the_socket_is_told_and_ends_the_connection(served: Served, sent: bytes, why: str) -> None:
    engine = await served.connect()
    engine.writer.write(sent)
    assert why in (await engine.read()).exception.error
    assert await engine.reader.read() == b""


async def test_a_reader_that_does_not_read_is_not_written_to_without_end(served: Served) -> None:
    """Its answers fill the socket; from then on its requests are not read, and other connections go on."""
    slow, other = await served.connect(), await served.connect()
    message = "x" * 60_000
    slow.send(echo=abci_pb2.EchoRequest(message=message))
    for _ in range(500):
        slow.send(echo=abci_pb2.EchoRequest(message=message))
    assert (await other.ask(echo=abci_pb2.EchoRequest(message="quick"))).echo.message == "quick"
    assert slow.writer.transport.get_write_buffer_size() > 0
    for _ in range(501):
        assert (await slow.read()).echo.message == message


async def test_proposals_are_made_and_judged_by_the_same_rules(served: Served) -> None:
    engine = await served.connect()
    waiting = [transfer(0), transfer(2), transfer(1)]
    asked = abci_pb2.PrepareProposalRequest(txs=waiting, max_tx_bytes=1_000_000)
    chosen = list((await engine.ask(prepare_proposal=asked)).prepare_proposal.txs)
    assert chosen == [waiting[0], waiting[2]]
    for txs, status in (
        (chosen, abci_pb2.PROCESS_PROPOSAL_STATUS_ACCEPT),
        (waiting, abci_pb2.PROCESS_PROPOSAL_STATUS_REJECT),
    ):
        answer = await engine.ask(process_proposal=abci_pb2.ProcessProposalRequest(txs=txs))
        assert answer.process_proposal.status == status


async def test_a_proposal_leaves_room_for_what_protobuf_adds(served: Served) -> None:
    engine = await served.connect()
    txs = [transfer(nonce) for nonce in range(50)]
    limit = 20 * len(txs[0])
    asked = abci_pb2.PrepareProposalRequest(txs=txs, max_tx_bytes=limit)
    chosen = (await engine.ask(prepare_proposal=asked)).prepare_proposal.txs
    assert len(chosen) > 0
    assert sum(len(tx) + 1 + len(varint(len(tx))) for tx in chosen) <= limit


async def test_vote_extensions_are_empty_here_and_must_be_elsewhere(served: Served) -> None:
    engine = await served.connect()
    assert (await engine.ask(extend_vote=abci_pb2.ExtendVoteRequest())).extend_vote.vote_extension == b""
    for extension, status in (
        (b"", abci_pb2.VERIFY_VOTE_EXTENSION_STATUS_ACCEPT),
        (b"x", abci_pb2.VERIFY_VOTE_EXTENSION_STATUS_REJECT),
    ):
        asked = abci_pb2.VerifyVoteExtensionRequest(vote_extension=extension)
        assert (await engine.ask(verify_vote_extension=asked)).verify_vote_extension.status == status


async def test_a_ledger_restores_itself_from_the_snapshot_of_another(served: Served, tmp_path: Path) -> None:
    blocks, executor = our_engines_blocks(tmp_path / "ours", [[transfer(0)], [transfer(1)]])
    executor.store.close()
    engine = await served.connect()
    for block in blocks:
        await engine.ask(finalize_block=finalize(block))
        await engine.ask(commit=abci_pb2.CommitRequest())
    served.snapshots.take(served.ledger.application)
    (offered,) = (await engine.ask(list_snapshots=abci_pb2.ListSnapshotsRequest())).list_snapshots.snapshots
    asked = abci_pb2.LoadSnapshotChunkRequest(height=offered.height, format=offered.format, chunk=0)
    chunk = (await engine.ask(load_snapshot_chunk=asked)).load_snapshot_chunk.chunk
    app_hash = served.ledger.chain.app_hash

    joining = Served(tmp_path / "joining")
    await joining.server.start()
    other = await joining.connect()
    lie = abci_pb2.OfferSnapshotRequest(snapshot=offered, app_hash=bytes(32))
    assert (await other.ask(offer_snapshot=lie)).offer_snapshot.result == abci_pb2.OFFER_SNAPSHOT_RESULT_REJECT_SENDER
    unknown = abci_pb2.Snapshot(height=2, format=99, chunks=1, hash=b"x", metadata=b"x")
    answer = await other.ask(offer_snapshot=abci_pb2.OfferSnapshotRequest(snapshot=unknown, app_hash=app_hash))
    assert answer.offer_snapshot.result == abci_pb2.OFFER_SNAPSHOT_RESULT_REJECT_FORMAT
    good = abci_pb2.OfferSnapshotRequest(snapshot=offered, app_hash=app_hash)
    assert (await other.ask(offer_snapshot=good)).offer_snapshot.result == abci_pb2.OFFER_SNAPSHOT_RESULT_ACCEPT
    bad = abci_pb2.ApplySnapshotChunkRequest(index=0, chunk=b"bad", sender="liar")
    refused = (await other.ask(apply_snapshot_chunk=bad)).apply_snapshot_chunk
    assert refused.result == abci_pb2.APPLY_SNAPSHOT_CHUNK_RESULT_RETRY
    assert (list(refused.refetch_chunks), list(refused.reject_senders)) == ([0], ["liar"])
    right = abci_pb2.ApplySnapshotChunkRequest(index=0, chunk=chunk, sender="honest")
    applied = (await other.ask(apply_snapshot_chunk=right)).apply_snapshot_chunk
    assert applied.result == abci_pb2.APPLY_SNAPSHOT_CHUNK_RESULT_ACCEPT
    info = (await other.ask(info=abci_pb2.InfoRequest())).info
    assert (info.last_block_height, info.last_block_app_hash) == (2, app_hash)
    # An engine that was killed before it knew of it begins once more.
    assert (await other.ask(offer_snapshot=good)).offer_snapshot.result == abci_pb2.OFFER_SNAPSHOT_RESULT_ACCEPT
    applied = (await other.ask(apply_snapshot_chunk=right)).apply_snapshot_chunk
    assert applied.result == abci_pb2.APPLY_SNAPSHOT_CHUNK_RESULT_ACCEPT
    assert (await engine.ask(offer_snapshot=good)).offer_snapshot.result == abci_pb2.OFFER_SNAPSHOT_RESULT_ABORT
    await joining.close()
    again = HostedLedger(make_genesis(), tmp_path / "joining", SystemClock())
    assert again.application.info().app_hash == app_hash
    again.store.close()


def lying_snapshot(app_hash: bytes, content: bytes) -> abci_pb2.Snapshot:
    """Whoever knows the right root can describe any bytes as a snapshot of it."""
    metadata = app_hash + hashlib.sha256(content).digest()
    return abci_pb2.Snapshot(
        height=2, format=FORMAT, chunks=1, hash=hashlib.sha256(metadata).digest(), metadata=metadata
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, 5_000), st.binary(min_size=1, max_size=8))))
def test_whatever_a_peer_calls_a_snapshot_changes_nothing_unless_it_has_the_root(
    tmp_path_factory: pytest.TempPathFactory, change: bytes | tuple[int, bytes]
) -> None:
    ledger = HostedLedger(make_genesis(), tmp_path_factory.mktemp("ledger"), SystemClock())
    requests = Requests(ledger, SnapshotStore(tmp_path_factory.mktemp("snapshots")), Told())
    before = ledger.application.info()
    content = b"".join(chunks_of(ledger.application.snapshot()))
    if isinstance(change, bytes):
        wrong = change
    else:
        place, put = change[0] % len(content), change[1]
        wrong = content[:place] + put + content[place + len(put) :]
    app_hash = hashlib.sha256(b"another state").digest()
    offer = abci_pb2.OfferSnapshotRequest(snapshot=lying_snapshot(app_hash, wrong), app_hash=app_hash)
    accepted = requests.answer(abci_pb2.Request(offer_snapshot=offer)).offer_snapshot
    assert accepted.result == abci_pb2.OFFER_SNAPSHOT_RESULT_ACCEPT
    apply = abci_pb2.ApplySnapshotChunkRequest(index=0, chunk=wrong, sender="liar")
    applied = requests.answer(abci_pb2.Request(apply_snapshot_chunk=apply)).apply_snapshot_chunk
    assert applied.result == abci_pb2.APPLY_SNAPSHOT_CHUNK_RESULT_REJECT_SNAPSHOT
    assert ledger.application.info() == before
    ledger.store.close()


async def test_misbehavior_of_the_engine_reaches_the_ledger(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,), executor = our_engines_blocks(tmp_path / "ours", [[]])
    executor.store.close()
    seen: list[FinalizeRequest] = []
    finalize_block = Application.finalize_block

    def noted(application: Application, request: FinalizeRequest) -> FinalizeResponse:
        seen.append(request)
        return finalize_block(application, request)

    monkeypatch.setattr(Application, "finalize_block", noted)
    request = finalize(block)
    request.misbehavior.add(
        type=abci_pb2.MISBEHAVIOR_TYPE_DUPLICATE_VOTE,
        validator=abci_pb2.Validator(address=block.header.proposer_address, power=7),
        height=1,
        time=Timestamp(seconds=3, nanos=4),
        total_voting_power=28,
    )
    engine = await served.connect()
    await engine.ask(finalize_block=request)
    (fault,) = seen[0].misbehavior
    assert (fault.kind, fault.power, fault.height, fault.total_power) == ("duplicate_vote", 7, 1, 28)
    assert (fault.time_ns, fault.validator_address) == (3_000_000_004, block.header.proposer_address)
