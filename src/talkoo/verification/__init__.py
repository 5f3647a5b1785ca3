"""The offline checker behind `talkoo verify`: every proof of a task, from the local genesis and raw blocks alone.

Services may bring bytes; none of their words is believed. What this proves and what not: docs/verification.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from talkoo_api.ledger.v1 import service_pb2

from talkoo.verification.chain import Replay, replay_chain
from talkoo.verification.money import check_escrow, check_model, check_payments, check_slashes, check_supply
from talkoo.verification.report import Check, Report
from talkoo.verification.training import (
    FetchBlob,
    check_beacons,
    check_commitments,
    check_draws,
    check_parameters,
    check_transcripts,
    check_verdicts,
)
from talkoo_core.errors import NotFound

__all__ = ["Check", "FetchBlob", "Report", "verify_task", "verify_task_via"]


GENESIS_FILE = "genesis.json"
"""In the home folder: what this member itself holds, and the root of all trust here."""


class Home(Protocol):
    @property
    def home(self) -> Path: ...


class Source(Protocol):
    """Where bytes come from: `talkoo.Client` is one."""

    @property
    def profile(self) -> Home: ...

    def genesis(self) -> str: ...

    def blocks(self, from_height: int = 1, to_height: int = 0) -> Iterator[service_pb2.RawBlock]: ...

    def blob(self, sha256: str) -> bytes: ...


def verify_task(
    genesis_json: str,
    blocks: Iterable[service_pb2.RawBlock],
    task_id: str,
    fetch_blob: FetchBlob,
    recompute: bool = False,
) -> Report:
    """Check everything about one task. `blocks`: all, from height 1 on, in order.

    Raises InvalidInput for a genesis that cannot be read, NotFound when the verified chain holds no such task, and
    Unavailable when `recompute` is wanted and torch is not installed here. Whatever does not hold is in the report.
    """
    replay = Replay(genesis_json, task_id)
    evidence = replay_chain(replay, blocks)
    if evidence is None:
        return Report(task_id, tuple(tally.done() for tally in replay.tallies if tally.count))
    if not evidence.task.id:
        raise NotFound(f"the chain holds no task {task_id} up to block {evidence.height}; see `talkoo tasks`")
    note = f"up to block {evidence.height}, from genesis {replay.genesis_sha256.hex()[:16]}"
    checks = [tally.done(note if tally is replay.blocks else "") for tally in replay.tallies]
    checks += [
        check_beacons(evidence),
        check_draws(evidence),
        check_commitments(evidence),
        check_transcripts(evidence, fetch_blob),
        check_parameters(evidence, fetch_blob),
        check_verdicts(evidence),
        check_payments(evidence),
        check_escrow(evidence),
        check_slashes(evidence),
        check_model(evidence, fetch_blob),
        check_supply(evidence),
    ]
    if recompute:
        from talkoo.verification.recomputation import check_by_recomputing

        checks.append(check_by_recomputing(evidence, fetch_blob))
    return Report(task_id, tuple(checks))


def verify_task_via(client: Source, task_id: str, recompute: bool = False) -> Report:
    """`verify_task` over a connected client, from the genesis file in the caller's own home.

    A home without one takes the gateway's; the report names its hash, to be compared with another member's.
    """
    own = client.profile.home / GENESIS_FILE
    genesis_json = own.read_text(encoding="utf-8") if own.is_file() else client.genesis()
    return verify_task(genesis_json, _all_blocks(client), task_id, client.blob, recompute)


def _all_blocks(client: Source) -> Iterator[service_pb2.RawBlock]:
    """A node sends so many blocks at once; ask on until there are no more."""
    height = 1
    while True:
        came = 0
        for raw in client.blocks(height):
            came += 1
            yield raw
        if not came:
            return
        height += came
