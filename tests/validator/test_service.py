# ruff: noqa: N802  (method names are the wire contract's)
"""The validator's service over real mutual TLS, with real blobs and the real child.

The ledger is a stand-in that keeps segments and takes verdicts, since a real node brings consensus that these tests are
not about; the whole path with real nodes is tested end to end in tests/e2e.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, state_pb2, tx_pb2
from talkoo_api.validator.v1 import validator_pb2, validator_pb2_grpc
from talkoo_validator.memory import AuditRecord, Memory
from talkoo_validator.service import serve
from talkoo_validator.settings import ValidatorSettings

from talkoo_runtime.blobs import FolderBlobStore
from talkoo_runtime.grpc_client import open_channel
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.keys import create_key
from talkoo_runtime.pki import ensure_authority, ensure_certificate, identity_uri, trust_bundle
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_runtime.supervision import Background
from talkoo_sim.ports import free_port

ORGANIZATIONS = ("east", "north", "south", "west")


class StandInLedger(service_pb2_grpc.LedgerServicer):
    """Blocks on demand; verdicts of `north` arrive as transactions, the others' are put in by the tests."""

    def __init__(self, gang: Any) -> None:
        self.segments: dict[str, state_pb2.Segment] = {}
        self.task = state_pb2.Task(id="", spec=gang.spec)
        self.blocks: list[service_pb2.BlockEvents] = []
        self.received: list[str] = []
        self.revealed: list[tx_pb2.Verdict] = []
        self.nonce = 0
        self.refuse_reveals = False
        self._more = asyncio.Event()

    def block(self, *events: service_pb2.Event) -> None:
        self.blocks.append(service_pb2.BlockEvents(height=len(self.blocks) + 1, events=events))
        self._more.set()
        self._more = asyncio.Event()

    def open_audit(self, segment: state_pb2.Segment) -> str:
        self.task.id = segment.task_id
        key = f"{segment.task_id}/{segment.attempt:06d}/{segment.segment:06d}"
        self.segments[key] = state_pb2.Segment()
        self.segments[key].CopyFrom(segment)
        attributes = {"attempt": segment.attempt, "segment": segment.segment, "rate_ppm": 1, "reason": "drawn by lot"}
        pairs = [service_pb2.Attribute(key=name, value=str(value)) for name, value in attributes.items()]
        self.block(service_pb2.Event(type="audit_opened", subject=segment.task_id, attributes=pairs))
        return key

    def others_commit(self, key: str, *organizations: str) -> None:
        for organization in organizations:
            self.segments[key].votes.add(organization=organization, digest=b"\1" * 32, power=100)
        self.block()

    async def Broadcast(self, request: Any, context: Any) -> Any:
        body = tx_pb2.TxBody.FromString(tx_pb2.SignedTx.FromString(request.tx).body)
        self.nonce = body.nonce + 1
        if body.HasField("commit_verdict"):
            message = body.commit_verdict
            key = f"{message.task_id}/{message.attempt:06d}/{message.segment:06d}"
            self.segments[key].votes.add(organization="north", digest=message.digest, power=100)
            self.received.append("commit")
        else:
            verdict = tx_pb2.Verdict.FromString(body.reveal_verdict.verdict)
            key = f"{verdict.task_id}/{verdict.attempt:06d}/{verdict.segment:06d}"
            vote = next(vote for vote in self.segments[key].votes if vote.organization == "north")
            assert hashlib.sha256(body.reveal_verdict.salt + body.reveal_verdict.verdict).digest() == vote.digest
            vote.salt, vote.verdict = body.reveal_verdict.salt, body.reveal_verdict.verdict
            self.received.append("reveal")
            self.revealed.append(verdict)
        self.block()
        return service_pb2.BroadcastResponse(hash=hashlib.sha256(request.tx).digest())

    async def WaitTx(self, request: Any, context: Any) -> Any:
        return service_pb2.TxResult(hash=request.hash, height=len(self.blocks))

    async def GetStatus(self, request: Any, context: Any) -> Any:
        return service_pb2.Status(chain_id="test-1", height=len(self.blocks))

    async def Get(self, request: Any, context: Any) -> Any:
        values = {
            "accounts": lambda: state_pb2.Account(nonce=self.nonce, balance_utlk=10**9),
            "segments": lambda: self.segments[request.key],
            "tasks": lambda: self.task,
        }
        return service_pb2.GetResponse(value=values[request.module]().SerializeToString())

    async def List(self, request: Any, context: Any) -> Any:
        entries = [
            service_pb2.Entry(key=name, value=state_pb2.Organization(name=name, power=100).SerializeToString())
            for name in ORGANIZATIONS
        ]
        return service_pb2.ListResponse(entries=entries)

    async def GetParams(self, request: Any, context: Any) -> Any:
        return state_pb2.Params(min_fee_utlk=1, audit_deadline_blocks=40, max_audit_extensions=1)

    async def Follow(self, request: Any, context: Any) -> AsyncIterator[Any]:
        sent = max(request.from_height - 1, 0)
        while True:
            more = self._more
            for block in self.blocks[sent:]:
                sent = block.height
                yield block
            await more.wait()


class Place:
    """A stand-in ledger, a blob folder and certificates; validators are started and stopped over them."""

    def __init__(self, folder: Path, gang: Any) -> None:
        self.folder, self.gang = folder, gang
        self.ledger = StandInLedger(gang)
        self.store = FolderBlobStore(folder / "store")
        authority = ensure_authority(folder / "authority", "north")
        (folder / "bundle.pem").write_bytes(trust_bundle([authority]))
        for role in ("ledger", "validator", "gateway"):
            ensure_certificate(authority, folder / role, identity_uri("test", "north", role, f"north-{role}"))
        create_key(folder / "account.key")

    def _names(self, role: str, port: int) -> dict[str, Any]:
        return {
            "federation": "test",
            "organization": "north",
            "name": f"north-{role}",
            "listen": f"127.0.0.1:{port}",
            "state_dir": str(self.folder / f"state-{role}"),
            "certificate": str(self.folder / role / "certificate.pem"),
            "private_key": str(self.folder / role / "private-key.pem"),
            "trust_bundle": str(self.folder / "bundle.pem"),
        }

    async def start_ledger(self, port: int) -> Any:
        for blob in self.gang.blobs.values():
            await self.store.put(blob)
        server = make_server()
        service_pb2_grpc.add_LedgerServicer_to_server(self.ledger, server)
        await start_server(server, ServiceSettings(**self._names("ledger", port)))
        return server

    @asynccontextmanager
    async def validator(self, ledger_port: int, port: int) -> AsyncIterator[Any]:
        settings = ValidatorSettings(
            **self._names("validator", port),
            ledger=f"127.0.0.1:{ledger_port}",
            blobs=f"file://{self.folder / 'store'}",
            account_key=str(self.folder / "account.key"),
        )
        background = Background()
        stop = await serve(settings, background)
        channel = open_channel(
            f"127.0.0.1:{port}",
            self.folder / "gateway" / "certificate.pem",
            self.folder / "gateway" / "private-key.pem",
            self.folder / "bundle.pem",
        )
        try:
            yield validator_pb2_grpc.ValidatorStub(channel)
        finally:
            await channel.close()
            await stop()

    def memory(self) -> Memory:
        return Memory(self.folder / "state-validator" / "audits.db")


@pytest.fixture
async def place(tmp_path: Path, gang: Any) -> AsyncIterator[tuple[Place, int]]:
    place, port = Place(tmp_path, gang), free_port()
    server = await place.start_ledger(port)
    yield place, port
    await server.stop(0)


async def states(stub: Any) -> list[tuple[int, str]]:
    answer = await stub.ListAudits(validator_pb2.ListAuditsRequest())
    return [(audit.segment, audit.state) for audit in answer.audits]


async def test_honest_forged_and_missing_segments_get_their_verdicts_in_turn(
    place: tuple[Place, int], gang: Any, kit: ModuleType
) -> None:
    here, ledger_port = place
    forged = kit.with_forged_loss(gang, segment=1, rank=0, step=3)
    for commitment in forged.commitments:
        await here.store.put(gang.blobs[commitment.segment.transcript_sha256])
    missing = state_pb2.Segment()
    missing.CopyFrom(gang.segments[0])
    missing.attempt = 3
    missing.commitments[1].segment.transcript_sha256 = "ab" * 32
    forged.attempt = 2
    async with here.validator(ledger_port, free_port()) as stub:
        for segment in (gang.segments[0], forged, missing):
            key = here.ledger.open_audit(segment)
            here.ledger.others_commit(key, "east", "south")

        async def all_revealed() -> bool:
            return [state for _, state in await states(stub)] == ["revealed"] * 3

        await kit.until(all_revealed, "all three verdicts are revealed", 120)
        audits = (await stub.ListAudits(validator_pb2.ListAuditsRequest())).audits
    found = {verdict.attempt: verdict for verdict in here.ledger.revealed}
    assert (found[1].available, [finding.honest for finding in found[1].findings]) == (True, [True, True])
    assert [(finding.honest, finding.first_bad_step) for finding in found[2].findings] == [(False, 3), (True, 0)]
    assert not found[3].available
    summaries = {audit.attempt: audit.summary for audit in audits}
    assert "rank 0 at step 3" in summaries[2]
    assert summaries[3].startswith("not available")


async def test_a_validator_killed_between_commit_and_reveal_opens_its_verdict_after_the_restart(
    place: tuple[Place, int], gang: Any, kit: ModuleType
) -> None:
    here, ledger_port = place
    key = here.ledger.open_audit(gang.segments[1])
    async with here.validator(ledger_port, free_port()) as stub:

        async def committed() -> bool:
            return await states(stub) == [(1, "committed")]

        await kit.until(committed, "the verdict is committed", 120)
        assert here.ledger.received == ["commit"]
    memory = here.memory()
    record = memory.get((gang.segments[1].task_id, 1, 1))
    assert record is not None
    assert (len(record.salt), record.state) == (32, "committed")
    # As if the crash came before the note of the commitment: the ledger's state decides, nothing is sent twice.
    memory.save(AuditRecord(*record.key, state="recomputing", verdict=record.verdict, salt=record.salt))
    memory.close()
    async with here.validator(ledger_port, free_port()) as stub:
        here.ledger.others_commit(key, "east", "south")

        async def revealed() -> bool:
            return here.ledger.received == ["commit", "reveal"]

        await kit.until(revealed, "the verdict is revealed", 60)
    assert here.ledger.revealed[0].heldout_total == 10


async def test_an_audit_of_a_discarded_segment_is_dropped(place: tuple[Place, int], gang: Any, kit: ModuleType) -> None:
    here, ledger_port = place
    segment = state_pb2.Segment()
    segment.CopyFrom(gang.segments[0])
    segment.phase = state_pb2.SEGMENT_PHASE_DISCARDED
    here.ledger.open_audit(segment)
    async with here.validator(ledger_port, free_port()) as stub:

        async def dropped() -> bool:
            return await states(stub) == [(0, "dropped")]

        await kit.until(dropped, "the audit is dropped", 20)
    assert here.ledger.received == []


async def test_without_torch_the_validator_serves_and_says_why_it_abstains(
    place: tuple[Place, int],
    gang: Any,
    kit: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, ledger_port = place
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "torch.py").write_text("raise ImportError('No module named torch', name='torch')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))
    here.ledger.open_audit(gang.segments[0])
    async with here.validator(ledger_port, free_port()) as stub:

        async def abstained() -> bool:
            return await states(stub) == [(0, "failed")]

        await kit.until(abstained, "the validator abstains", 30)
        [audit] = (await stub.ListAudits(validator_pb2.ListAuditsRequest())).audits
    assert "torch is not installed here; install talkoo[train]" in audit.summary
    assert here.ledger.received == []
