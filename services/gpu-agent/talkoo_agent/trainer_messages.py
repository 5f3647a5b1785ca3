"""What the agent and its children say to each other: one JSON object on a line, tagged by `type`.

No torch here: the agent itself imports this module.
"""

from __future__ import annotations

from typing import Any

import msgspec

LINE_MAX_BYTES = 1 << 20
"""A longer line is refused on either side."""

PEER_TIMEOUT_S = 60.0
"""How long a rank waits for its peers, at the start and in every step, before they count as lost."""

FAILURE_KINDS = (
    "missing_module",
    "bad_program",
    "bad_optimizer",
    "model_raised",
    "loss_nan",
    "data_missing",
    "data_hash",
    "bad_checkpoint",
    "peer_lost",
    "out_of_memory",
    "disk_full",
    "internal",
)


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """First line to a trainer. Paths are absolute; empty checkpoint paths mean a fresh start from `seed`."""

    task: str
    rank: int
    shares: list[int]
    """Samples of each rank; the length is the world size."""
    host: str
    port: int
    """Rank 0 listens there; 0: it takes a free port and says so in `listening`."""
    code_dir: str
    module: str
    config: dict[str, Any]
    data_path: str
    data_sha256: str
    optimizer: str
    optimizer_options_json: str
    seed: int
    params_path: str = ""
    optimizer_path: str = ""
    work_dir: str
    """Transcripts and checkpoints of finished segments go here, one folder each."""
    backend: str = "gloo"
    card: str = ""
    """UUID of the only card that CUDA may show the trainer; empty on a processor."""
    exchange: str = "mesh"
    """`mesh`: by the backend, every rank reaching every other; `star`: through rank 0, which all must reach."""
    duty: float = 1.0
    peer_timeout_s: float = PEER_TIMEOUT_S
    forge_from_segment: int = -1
    """From this segment on, pretend instead of computing; -1: honest. For demonstrations and tests of the audit."""


class RunSegment(msgspec.Struct, frozen=True, kw_only=True, tag="segment"):
    segment: int
    beacon: str
    """64 hex digits."""
    first_step: int
    steps: int


class Listening(msgspec.Struct, frozen=True, kw_only=True, tag="listening"):
    """Rank 0 only: peers may come."""

    host: str
    port: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """All ranks have met; segments may be sent."""

    parameters: int
    hardware_class: str


class Warm(msgspec.Struct, frozen=True, tag="warm"):
    """To a spare trainer: answer `Warmed` once torch is loaded."""


class Warmed(msgspec.Struct, frozen=True, tag="warmed"):
    """The trainer has nothing left to load."""


class Step(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    segment: int
    step: int
    loss: float
    """Mean over the global batch, for display."""
    samples_per_second: float
    """Of this rank, throttle included."""


class SegmentDone(msgspec.Struct, frozen=True, kw_only=True, tag="segment_done"):
    segment: int
    root: str
    transcript_path: str
    params_path: str
    params_sha256: str
    optimizer_path: str
    optimizer_sha256: str
    samples: int
    flops_per_sample: int
    loss_bits: int
    """float32 bits of the last step's global loss."""
    cpu_seconds: float
    duration_s: float


class ChildFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The last line of a child that gives up; its exit status is not zero."""

    kind: str
    message: str
    step: int = -1


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    speed_flops: int
    hardware_class: str
    memory_bytes: int
    """Of the accelerator; 0 on a CPU."""
    duty: float


class LoadModel(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """To the model server: make this version ready. Loading another replaces it."""

    version: str
    code_dir: str
    module: str
    config: dict[str, Any]
    params_path: str
    seed: int = 0


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    version: str


class InferInputs(msgspec.Struct, frozen=True, kw_only=True, tag="infer"):
    request: str
    inputs: list[Any]


class Inferred(msgspec.Struct, frozen=True, kw_only=True, tag="inferred"):
    request: str
    outputs: list[Any]
    cpu_seconds: float


class RequestFailed(msgspec.Struct, frozen=True, kw_only=True, tag="request_failed"):
    """The server lives on; only this request failed."""

    request: str
    kind: str
    message: str


ToTrainer = Warm | Start | RunSegment
FromTrainer = Warmed | Listening | Ready | Step | SegmentDone | ChildFailed | Measured
ToModelServer = LoadModel | InferInputs
FromModelServer = Loaded | Inferred | RequestFailed | ChildFailed

to_trainer = msgspec.json.Decoder(ToTrainer)
from_trainer = msgspec.json.Decoder(FromTrainer)
to_model_server = msgspec.json.Decoder(ToModelServer)
from_model_server = msgspec.json.Decoder(FromModelServer)


def line_of(message: msgspec.Struct) -> bytes:
    return msgspec.json.encode(message) + b"\n"
