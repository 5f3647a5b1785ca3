"""What each ABCI request does with the ledger. One call, one answer; nothing waits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from talkoo_api.abci.v1 import abci_pb2

from talkoo_core.errors import Corrupt, Exhausted, InvalidInput
from talkoo_ledger.abci import convert
from talkoo_ledger.abci.beginning import beginning_of
from talkoo_ledger.abci.hosted import HostedLedger
from talkoo_ledger.application import CheckResult
from talkoo_ledger.mempool import MAX_PER_SENDER
from talkoo_ledger.query import answer
from talkoo_ledger.snapshots import FORMAT, Restore, SnapshotStore

log = logging.getLogger(__name__)

INFO_DATA = "talkoo"
TX_OVERHEAD_BYTES = 5
"""Of a transaction in a block's protobuf, beyond its own bytes: a tag, and a length below 2^28."""


class Told(Protocol):
    """Who wants to know what the engine asked."""

    def checked(self, data: bytes, result: CheckResult, *, again: bool) -> None:
        """A transaction was checked; `again`: after a block, because it still waits."""

    def committed(self, hashes: list[bytes]) -> int:
        """A block is final and stored. Returns the lowest height that the engine must keep; 0: all."""


class Requests:
    """Answers ABCI requests from one ledger. The engine's connections share one instance."""

    def __init__(self, ledger: HostedLedger, snapshots: SnapshotStore, told: Told) -> None:
        self._ledger = ledger
        self._snapshots = snapshots
        self._told = told
        self._by_sender: Counter[str] = Counter()
        """Transactions that were checked since the last block, so those that wait."""
        self._restore: Restore | None = None
        self._answers: dict[str, Callable[[abci_pb2.Request], abci_pb2.Response]] = {
            "echo": self._echo,
            "flush": lambda _: _FLUSHED,
            "info": lambda _: self._info(),
            "init_chain": self._init_chain,
            "query": self._query,
            "check_tx": self._check_tx,
            "commit": lambda _: self._commit(),
            "list_snapshots": lambda _: self._list_snapshots(),
            "offer_snapshot": self._offer_snapshot,
            "load_snapshot_chunk": self._load_snapshot_chunk,
            "apply_snapshot_chunk": self._apply_snapshot_chunk,
            "prepare_proposal": self._prepare_proposal,
            "process_proposal": self._process_proposal,
            "extend_vote": lambda _: abci_pb2.Response(extend_vote=abci_pb2.ExtendVoteResponse()),
            "verify_vote_extension": self._verify_vote_extension,
            "finalize_block": self._finalize_block,
        }

    def answer(self, request: abci_pb2.Request) -> abci_pb2.Response:
        """Raises InvalidInput for a request this server does not know, and what must stop the node (Corrupt, …)."""
        kind = request.WhichOneof("value")
        if kind is None:
            raise InvalidInput("an ABCI request of no kind this ledger knows; it speaks CometBFT 1.0's", code="no_kind")
        return self._answers[kind](request)

    # --- beginnings ---

    def _echo(self, request: abci_pb2.Request) -> abci_pb2.Response:
        return abci_pb2.Response(echo=abci_pb2.EchoResponse(message=request.echo.message))

    def _info(self) -> abci_pb2.Response:
        """A chain that our own engine decided so far is a new one to this engine, so that it calls InitChain."""
        info, chain = self._ledger.application.info(), self._ledger.chain
        told = abci_pb2.InfoResponse(data=INFO_DATA, version=chain.chain_id, app_version=chain.app_version)
        if not self._ledger.untouched:
            told.last_block_height, told.last_block_app_hash = info.height, info.app_hash
        return abci_pb2.Response(info=told)

    def _init_chain(self, request: abci_pb2.Request) -> abci_pb2.Response:
        """Genesis stands in the store already; what matters is that the engine begins where this ledger is."""
        given, genesis, ledger = request.init_chain, self._ledger.genesis, self._ledger
        if not ledger.untouched:
            raise Corrupt(
                f"the engine begins a chain, and decided block {ledger.chain.last_height} of this ledger before; was "
                "its data removed? Restore it, or remove the ledger's state, too, and join anew",
                code="diverged",
            )
        begins = beginning_of(genesis, ledger.chain)
        named = {(each.pub_key_type, each.pub_key_bytes, each.power) for each in given.validators}
        ours = {(convert.KEY_TYPE, each.public_key, each.power) for each in begins.validators.validators}
        app_state = f'"{genesis.sha256().hex()}"'.encode()
        differs = [
            what
            for what, equal in (
                ("chain_id", given.chain_id == genesis.chain_id),
                ("genesis_time", convert.time_ns(given.time) == begins.time_ns),
                ("initial_height", given.initial_height == begins.height),
                ("validators", named == ours),
                ("app_state", given.app_state_bytes == app_state),
            )
            if not equal
        ]
        if differs:
            raise InvalidInput(
                f"the engine's genesis differs from the ledger's in {', '.join(differs)}; let the ledger write it "
                "(delete the engine's folder when it has decided nothing yet)",
                code="wrong_genesis",
            )
        return abci_pb2.Response(init_chain=abci_pb2.InitChainResponse(app_hash=begins.app_hash))

    # --- reading, and the engine's mempool ---

    def _query(self, request: abci_pb2.Request) -> abci_pb2.Response:
        """As the RPC of our own engine answers `abci_query`."""
        asked = request.query
        found = answer(self._ledger.application, asked.path, asked.data, asked.height, asked.prove)
        ops = [abci_pb2.ProofOp(type=op.type, key=op.key, data=op.data) for op in found.proof_ops]
        response = abci_pb2.QueryResponse(
            code=found.code, log=found.log, key=found.key, value=found.value, height=found.height
        )
        response.proof_ops.ops.extend(ops)
        return abci_pb2.Response(query=response)

    def _check_tx(self, request: abci_pb2.Request) -> abci_pb2.Response:
        data, again = request.check_tx.tx, request.check_tx.type == abci_pb2.CHECK_TX_TYPE_RECHECK
        result = self._ledger.application.check_tx(data, None if again else self._admit)
        if result.code == 0:
            self._by_sender[result.sender] += 1
        self._told.checked(data, result, again=again)
        return abci_pb2.Response(check_tx=convert.check_response(result))

    def _admit(self, sender: str) -> None:
        """The engine's mempool knows no senders; each has its share of it as in our own. Raises Exhausted."""
        if self._by_sender[sender] >= MAX_PER_SENDER:
            raise Exhausted(
                f"{MAX_PER_SENDER} transactions of {sender} wait already; let some become final", code="sender_full"
            )

    # --- blocks ---

    def _prepare_proposal(self, request: abci_pb2.Request) -> abci_pb2.Response:
        asked = request.prepare_proposal
        overhead = TX_OVERHEAD_BYTES * min(len(asked.txs), self._ledger.application.state.params.max_block_txs)
        chosen = self._ledger.application.prepare_proposal(asked.txs, asked.max_tx_bytes - overhead)
        return abci_pb2.Response(prepare_proposal=abci_pb2.PrepareProposalResponse(txs=chosen))

    def _process_proposal(self, request: abci_pb2.Request) -> abci_pb2.Response:
        good = self._ledger.application.process_proposal(request.process_proposal.txs)
        status = abci_pb2.PROCESS_PROPOSAL_STATUS_ACCEPT if good else abci_pb2.PROCESS_PROPOSAL_STATUS_REJECT
        return abci_pb2.Response(process_proposal=abci_pb2.ProcessProposalResponse(status=status))

    def _verify_vote_extension(self, request: abci_pb2.Request) -> abci_pb2.Response:
        """Ours are empty, and so must be the others'."""
        empty = not request.verify_vote_extension.vote_extension
        status = abci_pb2.VERIFY_VOTE_EXTENSION_STATUS_ACCEPT if empty else abci_pb2.VERIFY_VOTE_EXTENSION_STATUS_REJECT
        return abci_pb2.Response(verify_vote_extension=abci_pb2.VerifyVoteExtensionResponse(status=status))

    def _finalize_block(self, request: abci_pb2.Request) -> abci_pb2.Response:
        response = self._ledger.finalize(convert.finalize_request(request.finalize_block))
        return abci_pb2.Response(finalize_block=convert.finalize_response(response))

    def _commit(self) -> abci_pb2.Response:
        retain_height = self._told.committed(self._ledger.commit())
        self._by_sender.clear()  # what still waits is checked again now
        return abci_pb2.Response(commit=abci_pb2.CommitResponse(retain_height=retain_height))

    # --- snapshots ---

    def _list_snapshots(self) -> abci_pb2.Response:
        ours = [convert.snapshot_proto(snapshot) for snapshot in self._snapshots.list()]
        return abci_pb2.Response(list_snapshots=abci_pb2.ListSnapshotsResponse(snapshots=ours))

    def _load_snapshot_chunk(self, request: abci_pb2.Request) -> abci_pb2.Response:
        asked = request.load_snapshot_chunk
        chunk = self._snapshots.chunk(asked.height, asked.chunk) if asked.format == FORMAT else None
        return abci_pb2.Response(load_snapshot_chunk=abci_pb2.LoadSnapshotChunkResponse(chunk=chunk or b""))

    def _offer_snapshot(self, request: abci_pb2.Request) -> abci_pb2.Response:
        offered = request.offer_snapshot
        self._restore = None
        if not self._ledger.takes_snapshot:
            result = abci_pb2.OFFER_SNAPSHOT_RESULT_ABORT
        elif offered.snapshot.format != FORMAT:
            result = abci_pb2.OFFER_SNAPSHOT_RESULT_REJECT_FORMAT
        else:
            try:
                self._restore = Restore(convert.snapshot_of(offered.snapshot), offered.app_hash)
                result = abci_pb2.OFFER_SNAPSHOT_RESULT_ACCEPT
            except Corrupt as error:
                log.warning("a peer's snapshot of block %d was refused: %s", offered.snapshot.height, error)
                result = abci_pb2.OFFER_SNAPSHOT_RESULT_REJECT_SENDER
        return abci_pb2.Response(offer_snapshot=abci_pb2.OfferSnapshotResponse(result=result))

    def _apply_snapshot_chunk(self, request: abci_pb2.Request) -> abci_pb2.Response:
        applied = abci_pb2.ApplySnapshotChunkResponse(result=abci_pb2.APPLY_SNAPSHOT_CHUNK_RESULT_ACCEPT)
        given, restore = request.apply_snapshot_chunk, self._restore
        if restore is None:
            applied.result = abci_pb2.APPLY_SNAPSHOT_CHUNK_RESULT_ABORT
            return abci_pb2.Response(apply_snapshot_chunk=applied)
        try:
            restore.add(given.index, given.chunk)
        except Corrupt as error:
            log.warning("%s", error)
            applied.result = abci_pb2.APPLY_SNAPSHOT_CHUNK_RESULT_RETRY
            applied.refetch_chunks.append(given.index)
            applied.reject_senders.append(given.sender)
            return abci_pb2.Response(apply_snapshot_chunk=applied)
        if restore.complete:
            self._restore = None
            try:
                self._ledger.restore(restore.entries(), restore.snapshot.height, restore.snapshot.app_hash)
            except Corrupt as error:
                log.warning("the snapshot of block %d is not the chain's state: %s", restore.snapshot.height, error)
                applied.result = abci_pb2.APPLY_SNAPSHOT_CHUNK_RESULT_REJECT_SNAPSHOT
        return abci_pb2.Response(apply_snapshot_chunk=applied)


_FLUSHED = abci_pb2.Response(flush=abci_pb2.FlushResponse())
