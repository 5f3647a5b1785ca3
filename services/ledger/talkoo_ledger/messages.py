"""What a transaction says, as the rules see it: field by field the messages of `tx.proto`, which explains each field.

Only `wire` makes these from bytes, after checking every bound, so a rule never meets a malformed value.
"""

from __future__ import annotations

from msgspec import Struct


class BlobRef(Struct, frozen=True):
    """A blob by its content's hash."""

    sha256: str = ""
    size_bytes: int = 0


class Optimizer(Struct, frozen=True):
    """An optimizer and its options, canonical JSON of texts."""

    name: str = ""
    options_json: str = ""


class TaskSpec(Struct, frozen=True):
    """What is to be trained, under which limits."""

    name: str = ""
    mode: str = ""
    code: BlobRef = BlobRef()
    module: str = ""
    data: BlobRef = BlobRef()
    data_name: str = ""
    config_json: str = ""
    optimizer: Optimizer = Optimizer()
    global_batch: int = 0
    steps: int = 0
    steps_per_segment: int = 0
    min_nodes: int = 0
    max_nodes: int = 0
    memory_bytes: int = 0
    price_utlk_per_gflop: int = 0
    audit_rate_ppm: int = 0
    seed: int = 0
    model_name: str = ""
    parent_version: str = ""
    flops_per_sample: int = 0
    licence: str = ""
    request_price_utlk: int = 0


class Shard(Struct, frozen=True):
    """One node's part of every global batch."""

    node_id: str = ""
    rank: int = 0
    samples: int = 0
    price_utlk_per_gflop: int = 0


class RankFinding(Struct, frozen=True):
    """What a validator found about one rank of a segment."""

    rank: int = 0
    honest: bool = False
    first_bad_step: int = 0
    reason: str = ""


class Verdict(Struct, frozen=True):
    """What a validator found by re-computing a segment."""

    task_id: str = ""
    attempt: int = 0
    segment: int = 0
    findings: tuple[RankFinding, ...] = ()
    available: bool = False
    heldout_correct: int = 0
    heldout_total: int = 0


class Transfer(Struct, frozen=True, gc=False):
    """Tokens from the sender to another account."""

    to: str = ""
    amount_utlk: int = 0


class Bond(Struct, frozen=True):
    """Tokens of the sender become stake."""

    subject: str = ""
    amount_utlk: int = 0


class Unbond(Struct, frozen=True):
    """Stake starts on its way back."""

    subject: str = ""
    amount_utlk: int = 0


class ApplyMembership(Struct, frozen=True):
    """A newcomer asks to become a member."""

    name: str = ""
    owner_key: bytes = b""
    validator_key: bytes = b""
    proof_of_possession: bytes = b""
    scheduler: str = ""
    validator: str = ""
    authority: bytes = b""


class ApproveMember(Struct, frozen=True):
    """A member consents."""

    name: str = ""
    validator_key: bytes = b""


class RotateKey(Struct, frozen=True):
    """Another consensus key votes for the organization."""

    organization: str = ""
    validator_key: bytes = b""
    proof_of_possession: bytes = b""


class LeaveFederation(Struct, frozen=True):
    """A member gives up its power and takes its stake back."""

    organization: str = ""


class RegisterNode(Struct, frozen=True):
    """A node joins, or changes what it offers."""

    name: str = ""
    organization: str = ""
    endpoint: str = ""
    hardware_class: str = ""
    device: str = ""
    memory_bytes: int = 0
    speed_flops: int = 0
    price_utlk_per_gflop: int = 0
    stake_utlk: int = 0
    power_mw: int = 0
    power_source: str = ""
    request_price_utlk: int = 0
    endorsement: bytes = b""
    outbound_only: bool = False


class CreateTask(Struct, frozen=True):
    """A task with the escrow that pays for it."""

    spec: TaskSpec = TaskSpec()
    escrow_utlk: int = 0


class PlaceTask(Struct, frozen=True):
    """A gang of nodes for the next attempt of a task."""

    task_id: str = ""
    attempt: int = 0
    shards: tuple[Shard, ...] = ()
    reason: str = ""


class CommitSegment(Struct, frozen=True):
    """One rank's commitment to a finished segment."""

    task_id: str = ""
    attempt: int = 0
    segment: int = 0
    rank: int = 0
    root: bytes = b""
    transcript_sha256: str = ""
    params_sha256: str = ""
    optimizer_sha256: str = ""
    samples: int = 0
    flops: int = 0
    loss_bits: int = 0
    energy_mj: int = 0
    duration_ms: int = 0


class CommitVerdict(Struct, frozen=True):
    """First half of a verdict: its digest."""

    task_id: str = ""
    attempt: int = 0
    segment: int = 0
    digest: bytes = b""


class RevealVerdict(Struct, frozen=True):
    """Second half of a verdict: salt and text."""

    salt: bytes = b""
    verdict: bytes = b""


class CancelTask(Struct, frozen=True):
    """The owner ends a task."""

    task_id: str = ""


class FailTask(Struct, frozen=True):
    """A report that a task cannot go on."""

    task_id: str = ""
    attempt: int = 0
    kind: str = ""
    message: str = ""


class RequestModel(Struct, frozen=True):
    """Pays for one request to a model."""

    version: str = ""
    node_id: str = ""
    input_sha256: bytes = b""
    price_utlk: int = 0


class CompleteRequest(Struct, frozen=True):
    """The serving node's answer."""

    request_id: str = ""
    output_sha256: bytes = b""
    energy_mj: int = 0


class FundTask(Struct, frozen=True):
    """More escrow for a task."""

    task_id: str = ""
    amount_utlk: int = 0


class AccuseAmnesia(Struct, frozen=True):
    """A precommit, and a later vote of the same validator for another block."""

    vote_a: bytes = b""
    vote_b: bytes = b""


class AnswerAccusation(Struct, frozen=True):
    """Prevotes that allowed the later vote."""

    accusation: str = ""
    votes: tuple[bytes, ...] = ()


Message = (
    AccuseAmnesia
    | AnswerAccusation
    | Transfer
    | Bond
    | Unbond
    | RegisterNode
    | CreateTask
    | PlaceTask
    | CommitSegment
    | CommitVerdict
    | RevealVerdict
    | CancelTask
    | FailTask
    | RequestModel
    | CompleteRequest
    | FundTask
    | ApplyMembership
    | ApproveMember
    | RotateKey
    | LeaveFederation
)
"""Anything a transaction may carry."""


class Transaction(Struct, frozen=True, gc=False):
    """One signed transaction whose form is right; its signature is checked apart."""

    hash: bytes
    """SHA-256 of the SignedTx bytes."""
    sender: str
    public_key: bytes
    signature: bytes
    signed_bytes: bytes
    """What the signature covers: domain prefix and body."""
    chain_id: str
    nonce: int
    fee_utlk: int
    memo: str
    kind: str
    """Name of the message in the oneof."""
    message: Message
    size_bytes: int
