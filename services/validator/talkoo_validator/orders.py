"""What the service and its re-computing child say to each other: one JSON object on a line, tagged by `type`.

No torch here: the service and `talkoo verify` import this module. Paths are absolute; the child fetches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from talkoo_api.ledger.v1 import state_pb2, tx_pb2

from talkoo_core.errors import InvalidInput

LINE_MAX_BYTES = 1 << 20
"""A longer line is refused on either side."""

BROKEN_PROGRAM = frozenset(
    {
        "missing_module",
        "bad_program",
        "bad_optimizer",
        "model_raised",
        "loss_nan",
        "gradient_nan",
        "gradient_overflow",
        "bad_checkpoint",
        "data_missing",
    }
)
"""Failures that lie in the task's own bytes: every validator meets the same, and trying again is idle."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank committed, and where its transcript lies."""

    root: str
    params_sha256: str
    optimizer_sha256: str
    transcript_path: str


class Recompute(msgspec.Struct, frozen=True, kw_only=True, tag="recompute"):
    """Compute one segment again. Empty checkpoint paths mean a fresh start from `seed`."""

    task: str
    attempt: int
    segment: int
    beacon: str
    """64 hex digits."""
    first_step: int
    steps: int
    shares: list[int]
    claims: list[Claim]
    code_dir: str
    module: str
    config_json: str
    data_path: str
    optimizer: str
    optimizer_options_json: str
    seed: int
    flops_per_sample: int
    """As declared by the submitter."""
    params_path: str = ""
    optimizer_path: str = ""
    evaluate: bool = False
    """Also measure the held-out split at the end: the task's last segment."""


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """Give up the segment under way; the answer is `failed` with kind `stopped`."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    hardware_class: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    rank: int
    honest: bool
    first_bad_step: int
    reason: str


class Recomputed(msgspec.Struct, frozen=True, kw_only=True, tag="recomputed"):
    """The outcome. `disputed` says why a segment does not stand though nobody can be blamed; empty otherwise."""

    findings: list[Finding]
    steps_checked: int
    disputed: str
    params_sha256: str
    optimizer_sha256: str
    heldout_correct: int
    heldout_total: int
    duration_s: float
    cpu_seconds: float


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The segment could not be computed. Kinds in `BROKEN_PROGRAM` are the task's own fault."""

    kind: str
    message: str


ToChild = Recompute | Stop
FromChild = Ready | Recomputed | Failed
to_child = msgspec.json.Decoder(ToChild)
from_child: msgspec.json.Decoder[FromChild] = msgspec.json.Decoder(FromChild)


def line_of(message: msgspec.Struct) -> bytes:
    return msgspec.json.encode(message) + b"\n"


@dataclass(frozen=True, slots=True)
class Needs:
    """Blobs of one audit, by SHA-256. Start checkpoints are empty before segment 0 of a new model."""

    code: str
    data: str
    transcripts: tuple[str, ...]
    start_params: str
    start_optimizer: str

    def all(self) -> list[str]:
        """Each once, none empty."""
        wanted = [self.code, self.data, *self.transcripts, self.start_params, self.start_optimizer]
        return list(dict.fromkeys(sha256 for sha256 in wanted if sha256))


def needs_of(spec: tx_pb2.TaskSpec, segment: state_pb2.Segment) -> Needs:
    return Needs(
        code=spec.code.sha256,
        data=spec.data.sha256,
        transcripts=tuple(commitment.segment.transcript_sha256 for commitment in in_rank_order(segment)),
        start_params=segment.start_params_sha256,
        start_optimizer=segment.start_optimizer_sha256,
    )


def in_rank_order(segment: state_pb2.Segment) -> list[state_pb2.Commitment]:
    return sorted(segment.commitments, key=lambda commitment: commitment.segment.rank)


def is_last(spec: tx_pb2.TaskSpec, segment: state_pb2.Segment) -> bool:
    return segment.first_step + segment.steps >= spec.steps


def order_of(
    spec: tx_pb2.TaskSpec, segment: state_pb2.Segment, code_dir: Path, data_path: Path, blob_paths: dict[str, Path]
) -> Recompute:
    """The child's order for a segment whose blobs lie at `blob_paths` (by SHA-256)."""

    def path(sha256: str) -> str:
        return str(blob_paths[sha256]) if sha256 else ""

    return Recompute(
        task=segment.task_id,
        attempt=segment.attempt,
        segment=segment.segment,
        beacon=segment.beacon.hex(),
        first_step=segment.first_step,
        steps=segment.steps,
        shares=[shard.samples for shard in sorted(segment.shards, key=lambda shard: shard.rank)],
        claims=[_claim(commitment.segment, path) for commitment in in_rank_order(segment)],
        code_dir=str(code_dir),
        module=spec.module,
        config_json=spec.config_json,
        data_path=str(data_path),
        optimizer=spec.optimizer.name,
        optimizer_options_json=spec.optimizer.options_json,
        seed=spec.seed,
        flops_per_sample=spec.flops_per_sample,
        params_path=path(segment.start_params_sha256),
        optimizer_path=path(segment.start_optimizer_sha256),
        evaluate=is_last(spec, segment),
    )


def data_file_name(spec: tx_pb2.TaskSpec) -> str:
    """The name under which the program finds its data. Raises InvalidInput for one that leaves its folder."""
    name = spec.data_name or "data"
    if Path(name).name != name or name in {".", ".."}:
        raise InvalidInput(f"the task's data name {name!r} is not a plain file name", code="bad_program")
    return name


def _claim(commitment: tx_pb2.CommitSegment, path: Any) -> Claim:
    return Claim(
        root=commitment.root.hex(),
        params_sha256=commitment.params_sha256,
        optimizer_sha256=commitment.optimizer_sha256,
        transcript_path=path(commitment.transcript_sha256),
    )


def findings_text(findings: Sequence[Finding]) -> str:
    """One line about the ranks, for people."""
    bad = [f"rank {f.rank} at step {f.first_bad_step}: {f.reason}" for f in findings if not f.honest]
    return "; ".join(bad) if bad else f"all {len(findings)} ranks are honest"
