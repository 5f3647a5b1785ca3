"""The validator at work: follows the ledger, re-computes opened segments, commits to verdicts and reveals them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import time
from pathlib import Path

import msgspec
from talkoo_api.ledger.v1 import service_pb2, state_pb2, tx_pb2

from talkoo_core.errors import Corrupt, InvalidInput, NotFound, TalkooError
from talkoo_runtime.bundle import unpack
from talkoo_runtime.ledger_client import LedgerClient
from talkoo_runtime.supervision import Background
from talkoo_runtime.telemetry import span
from talkoo_validator.cache import BlobCache
from talkoo_validator.child import RecomputeChild
from talkoo_validator.memory import OPEN_STATES, AuditRecord, Memory
from talkoo_validator.metrics import count_given_up, count_verdict
from talkoo_validator.orders import (
    BROKEN_PROGRAM,
    Failed,
    Recomputed,
    data_file_name,
    findings_text,
    needs_of,
    order_of,
)
from talkoo_validator.verdicts import (
    SALT_BYTES,
    Bench,
    Do,
    OwnAudit,
    digest_of,
    next_action,
    unavailable_verdict,
    verdict_bytes,
    verdict_of,
)

log = logging.getLogger(__name__)
Key = tuple[str, int, int]

MAX_OPEN_AUDITS = 256
"""Audits in work or in line. The reader of the ledger waits when there are more."""
BLOCK_WAIT_S = 5.0
"""An audit looks again after so long even when no block came."""
SAVE_HEIGHT_EVERY = 50
"""Blocks. A crash repeats at most so many, and repeating a block changes nothing."""

_ENDING = {"segment_discarded": "the segment was discarded", "verdict": "the verdict is final"}


class AuditDesk:
    """One organization's audits. `organization` names whose power a vote has."""

    def __init__(
        self,
        organization: str,
        ledger: LedgerClient,
        cache: BlobCache,
        child: RecomputeChild,
        memory: Memory,
        work: Path,
    ) -> None:
        self._organization = organization
        self._ledger = ledger
        self._cache = cache
        self._child = child
        self._memory = memory
        self._work = work
        self._height = 0
        self._resumed = False
        self._next_block = asyncio.Event()
        self._open: set[Key] = set()
        self._room = asyncio.Semaphore(MAX_OPEN_AUDITS)

    @property
    def open_audits(self) -> int:
        return len(self._open)

    @property
    def height(self) -> int:
        """Of the last block that was read; 0 before the first."""
        return self._height

    def list(self, task_id: str = "") -> list[AuditRecord]:
        return self._memory.all(task_id)

    async def run(self, background: Background) -> None:
        """Take up what was open before a crash, then follow the ledger for ever. May be called again when it fails."""
        if not self._resumed:
            self._resumed = True
            shutil.rmtree(self._work, ignore_errors=True)
            for record in self._memory.all():
                if record.state in OPEN_STATES:
                    await self._take(record, background)
        async for block in self._ledger.follow(await self._first_height()):
            await self._read_block(block, background)

    async def _first_height(self) -> int:
        """Where to read on; a new validator begins where the oldest audit may still be open."""
        saved = await asyncio.to_thread(self._memory.height)
        if saved:
            return saved + 1
        params, status = await self._ledger.params(), await self._ledger.status()
        span_blocks = params.audit_deadline_blocks * (params.max_audit_extensions + 1) + params.reveal_grace_blocks
        return max(1, status.height - span_blocks)

    async def _read_block(self, block: service_pb2.BlockEvents, background: Background) -> None:
        opened = False
        for event in block.events:
            attributes = {attribute.key: attribute.value for attribute in event.attributes}
            if event.type == "audit_opened":
                opened = True
                key = event.subject, int(attributes["attempt"]), int(attributes["segment"])
                await self._open_audit(key, attributes.get("reason", ""), block.time_ns, background)
            elif event.type in _ENDING:
                self._child.stop_if_computing((event.subject, int(attributes["attempt"]), int(attributes["segment"])))
            elif event.type == "task_placed":
                background.start("warming the re-computing child", self._child.warm_up())
        self._height = block.height
        if opened or block.height % SAVE_HEIGHT_EVERY == 0:
            await asyncio.to_thread(self._memory.save_height, block.height)
        self._next_block.set()
        self._next_block = asyncio.Event()

    async def _open_audit(self, key: Key, reason: str, time_ns: int, background: Background) -> None:
        if key in self._open:
            return
        record = await asyncio.to_thread(self._memory.get, key)
        if record is None:
            record = AuditRecord(*key, summary=f"opened: {reason}", time_ns=time_ns)
        elif record.state == "failed":
            record = msgspec.structs.replace(
                record, state="queued", failed_attempts=0, summary=f"opened again: {reason}"
            )
        elif record.state not in OPEN_STATES:
            return
        await asyncio.to_thread(self._memory.save, record)
        await self._take(record, background)

    async def _take(self, record: AuditRecord, background: Background) -> None:
        await self._room.acquire()
        self._open.add(record.key)
        background.start(f"audit of {_words(record)}", self._audit(record))

    async def _audit(self, record: AuditRecord) -> None:
        """See one audit through. The ledger's state decides each step, so this may begin anywhere after a crash."""
        try:
            while record.state in OPEN_STATES:
                tick = self._next_block
                try:
                    record, again = await self._step(record)
                except TalkooError as error:
                    log.warning("the audit of %s waits: %s", _words(record), error)
                    again = False
                if not again:
                    await _wait(tick)
        except Exception:  # one audit that meets a fault of ours must not end all the others
            log.exception("the audit of %s met a fault of our own", _words(record))
            await self._note(record, "failed", "a fault of this validator; its log has the details")
        finally:
            self._open.discard(record.key)
            self._room.release()

    async def _step(self, record: AuditRecord) -> tuple[AuditRecord, bool]:
        """Do the next thing. Returns the new record, and whether to go on without waiting for a block."""
        segment = await self._ledger.segment(*record.key)
        own = OwnAudit(record.verdict, record.salt, record.failed_attempts)
        action = next_action(segment, own, await self._bench())
        match action.do:
            case Do.RECOMPUTE:
                return await self._recompute(record, segment), True
            case Do.COMMIT:
                await self._commit(record)
                return await self._note(record, "committed"), True
            case Do.REVEAL:
                await self._reveal(record)
                return await self._note(record, "revealed"), True
            case Do.FINISH:
                ended = (
                    "revealed" if record.state == "committed" and record.verdict and _mine(segment, own) else "dropped"
                )
                summary = record.summary if ended == "revealed" else action.reason
                return await self._note(record, ended, summary), True
            case Do.GIVE_UP:
                log.warning("no verdict on %s from here: %s", _words(record), action.reason)
                count_given_up()
                return await self._note(record, "failed", record.summary or action.reason), True
        return record, False

    async def _bench(self) -> Bench:
        organizations = await self._ledger.list("organizations", state_pb2.Organization)
        params = await self._ledger.params()
        return Bench(
            organization=self._organization,
            powers={organization.name: organization.power for organization in organizations},
            height=self._height,
            audit_blocks=params.audit_deadline_blocks,
        )

    async def _recompute(self, record: AuditRecord, segment: state_pb2.Segment) -> AuditRecord:
        record = await self._note(record, "recomputing")
        task = await self._ledger.task(segment.task_id)
        began = time.monotonic()
        with span("audit.recompute", parent=task.trace, **_labels(record)) as current:
            verdict, summary = await self._judge(task.spec, segment)
            current.set_attribute("summary", summary)
        duration_ms = round((time.monotonic() - began) * 1000)
        if verdict is None:
            log.warning("re-computing %s failed: %s", _words(record), summary)
            again = msgspec.structs.replace(record, failed_attempts=record.failed_attempts + 1)
            return await self._note(again, "queued", summary)
        count_verdict(verdict, duration_ms / 1000)
        log.info("re-computed %s in %.1f s: %s", _words(record), duration_ms / 1000, summary)
        judged = msgspec.structs.replace(
            record, verdict=verdict_bytes(verdict), salt=secrets.token_bytes(SALT_BYTES), duration_ms=duration_ms
        )
        return await self._note(judged, "recomputing", summary)

    async def _judge(self, spec: tx_pb2.TaskSpec, segment: state_pb2.Segment) -> tuple[tx_pb2.Verdict | None, str]:
        """The verdict and one line about it; no verdict when this validator itself is not able to give one."""
        folder = self._work / f"{segment.task_id}-{segment.attempt}-{segment.segment}"
        try:
            async with self._cache.hold(needs_of(spec, segment).all()) as paths:
                data = await asyncio.to_thread(_lay_out, folder, spec, paths)
                found = await self._child.compute(order_of(spec, segment, folder / "code", data, paths))
            if isinstance(found, Failed):
                return _verdict_of_failure(segment, found)
            verdict = verdict_of(segment, found)
            if verdict.available and all(finding.honest for finding in verdict.findings):
                async with self._cache.hold([found.params_sha256, found.optimizer_sha256]):
                    pass  # whoever goes on from here can have them
            return verdict, _summary(verdict, found)
        except (NotFound, Corrupt, InvalidInput) as error:
            return unavailable_verdict(segment, error.message), f"not available: {error.message}"
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _commit(self, record: AuditRecord) -> None:
        """The salt is on the disk before this, so the verdict can be opened after a crash."""
        message = tx_pb2.CommitVerdict(
            task_id=record.task_id,
            attempt=record.attempt,
            segment=record.segment,
            digest=digest_of(record.salt, record.verdict),
        )
        task = await self._ledger.task(record.task_id)
        with span("verdict.commit", parent=task.trace, **_labels(record)):
            await self._ledger.submit(message)

    async def _reveal(self, record: AuditRecord) -> None:
        task = await self._ledger.task(record.task_id)
        with span("verdict.reveal", parent=task.trace, **_labels(record)):
            await self._ledger.submit(tx_pb2.RevealVerdict(salt=record.salt, verdict=record.verdict))

    async def _note(self, record: AuditRecord, state: str, summary: str = "") -> AuditRecord:
        """Write the record with a new state; it is on the disk before anything else happens."""
        record = msgspec.structs.replace(record, state=state, summary=summary or record.summary, time_ns=time.time_ns())
        await asyncio.to_thread(self._memory.save, record)
        return record


def _lay_out(folder: Path, spec: tx_pb2.TaskSpec, paths: dict[str, Path]) -> Path:
    """The program unpacked and the data under its own name. Returns the data's path."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    unpack(paths[spec.code.sha256].read_bytes(), folder / "code")
    data = folder / "data" / data_file_name(spec)
    try:
        os.link(paths[spec.data.sha256], data)
    except OSError:  # another file system, or one without links
        shutil.copyfile(paths[spec.data.sha256], data)
    return data


def _verdict_of_failure(segment: state_pb2.Segment, failed: Failed) -> tuple[tx_pb2.Verdict | None, str]:
    if failed.kind in BROKEN_PROGRAM:
        return unavailable_verdict(segment, failed.message), f"not available: {failed.message}"
    return None, failed.message


def _summary(verdict: tx_pb2.Verdict, found: Recomputed) -> str:
    if not verdict.available:
        return f"not available: {found.disputed}"
    text = findings_text(found.findings)
    if found.heldout_total:
        text += f"; held-out {found.heldout_correct} of {found.heldout_total} right"
    return text


def _mine(segment: state_pb2.Segment, own: OwnAudit) -> bool:
    return any(vote.verdict and vote.verdict == own.verdict for vote in segment.votes)


def _labels(record: AuditRecord) -> dict[str, str | int]:
    return {"task_id": record.task_id, "attempt": record.attempt, "segment": record.segment}


def _words(record: AuditRecord) -> str:
    return f"segment {record.segment} of {record.task_id} (attempt {record.attempt})"


async def _wait(tick: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(tick.wait(), BLOCK_WAIT_S)
    except TimeoutError:
        return
