"""Starting and stopping the validator, and its calls."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from talkoo_api.ledger.v1 import service_pb2_grpc
from talkoo_api.validator.v1 import validator_pb2, validator_pb2_grpc

from talkoo_core.errors import InvalidInput
from talkoo_runtime.blobs import open_blob_store
from talkoo_runtime.flop_count import count_flops
from talkoo_runtime.grpc_client import service_channel
from talkoo_runtime.grpc_server import identity_of, make_server, start_server
from talkoo_runtime.identity import require
from talkoo_runtime.keys import load_key
from talkoo_runtime.ledger_client import LedgerClient
from talkoo_runtime.supervision import Background
from talkoo_validator.bench import AuditDesk
from talkoo_validator.cache import BlobCache
from talkoo_validator.child import RecomputeChild
from talkoo_validator.memory import AuditRecord, Memory
from talkoo_validator.metrics import watch_audits
from talkoo_validator.settings import ValidatorSettings

STOP_GRACE_S = 1.0
CALLERS = {"gateway", "supervisor", "validator"}
MAX_COUNTING = 1
"""Programs run at once to count their operations: each loads torch beside the re-computing child."""
LISTED_MAX = 1_000
"""Newest audits in one answer."""


class ValidatorServicer(validator_pb2_grpc.ValidatorServicer):
    """For people, dashboards and task owners of the own organization."""

    def __init__(self, desk: AuditDesk, child: RecomputeChild, cache: BlobCache, organization: str) -> None:
        self._desk = desk
        self._child = child
        self._cache = cache
        self._organization = organization
        self._counting = asyncio.Semaphore(MAX_COUNTING)

    async def ListAudits(
        self, request: validator_pb2.ListAuditsRequest, context: Any
    ) -> validator_pb2.ListAuditsResponse:
        require(identity_of(context), roles=CALLERS, organization=self._organization)
        records = self._desk.list(request.task_id)[-LISTED_MAX:]
        return validator_pb2.ListAuditsResponse(audits=[self._audit(record) for record in records])

    async def CountFlops(
        self, request: validator_pb2.CountFlopsRequest, context: Any
    ) -> validator_pb2.CountFlopsResponse:
        require(identity_of(context), roles=CALLERS, organization=self._organization)
        if Path(request.data_name).name != request.data_name or request.data_name in ("", ".", ".."):
            raise InvalidInput(f"data_name {request.data_name[:80]!r} is no plain file name", code="bad_field")
        async with self._counting, self._cache.hold([request.code_sha256, request.data_sha256]) as paths:
            code = await asyncio.to_thread(paths[request.code_sha256].read_bytes)
            with tempfile.TemporaryDirectory(prefix="talkoo-data-") as folder:
                data = Path(folder) / request.data_name  # programs may look at the name's ending
                data.symlink_to(paths[request.data_sha256])
                count = await count_flops(code, data, request.module, request.config_json)
        return validator_pb2.CountFlopsResponse(flops_per_sample=count)

    def _audit(self, record: AuditRecord) -> validator_pb2.Audit:
        waits = record.state == "queued" and self._child.refusal
        return validator_pb2.Audit(
            task_id=record.task_id,
            attempt=record.attempt,
            segment=record.segment,
            state=record.state,
            summary=self._child.refusal if waits else record.summary,
            duration_ms=record.duration_ms,
            time_ns=record.time_ns,
        )


async def serve(settings: ValidatorSettings, background: Background) -> Callable[[], Awaitable[None]]:
    """Start the validator; returns what stops it. It starts without its ledger and waits for it."""
    state_dir = Path(settings.state_dir)
    key = load_key(Path(settings.account_key))
    store = open_blob_store(settings.blobs, settings)
    memory = Memory(state_dir / "audits.db")
    child = RecomputeChild(state_dir / "recompute.log", settings.recompute_timeout_s)
    channel = service_channel(settings, settings.ledger)
    ledger = LedgerClient(service_pb2_grpc.LedgerStub(channel), key)  # type: ignore[no-untyped-call]
    cache = BlobCache(store, state_dir / "blobs", settings.cache_bytes)
    desk = AuditDesk(settings.organization, ledger, cache, child, memory, state_dir / "work")
    watch_audits(lambda: desk.open_audits, lambda: desk.height, cache.size_bytes, settings.cache_bytes)
    server = make_server()
    servicer = ValidatorServicer(desk, child, cache, settings.organization)
    validator_pb2_grpc.add_ValidatorServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    await start_server(server, settings)
    background.start_restarting("following the ledger", lambda: desk.run(background))

    async def stop() -> None:
        await server.stop(STOP_GRACE_S)
        await background.stop()  # audits first: none may wait for a child that is gone
        await child.close()
        await store.close()
        await channel.close()
        memory.close()

    return stop
