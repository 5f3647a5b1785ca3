"""What the ledger holds, as the rules see it: field by field the messages of `state.proto`, which explains them."""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct

from talkoo_ledger.messages import CommitSegment, Shard, TaskSpec, Verdict


class TaskPhase(IntEnum):
    """Where a task stands. The last three are final."""

    UNSPECIFIED = 0
    PENDING = 1
    RUNNING = 2
    VERIFYING = 3
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6


class SegmentPhase(IntEnum):
    """Where a segment stands. The last two are final."""

    UNSPECIFIED = 0
    OPEN = 1
    COMMITTED = 2
    AUDITED = 3
    PASSED = 4
    ACCEPTED = 5
    DISCARDED = 6


class Account(Struct, frozen=True, gc=False):
    """Liquid tokens of an address and its next nonce."""

    address: str = ""
    balance_utlk: int = 0
    nonce: int = 0
    label: str = ""


class FormerKey(Struct, frozen=True):
    """A consensus key that votes no more and still answers for what it signed."""

    validator_key: bytes = b""
    until_height: int = 0


class MembershipApplication(Struct, frozen=True):
    """A newcomer that waits for the members' consent."""

    name: str = ""
    owner: str = ""
    owner_key: bytes = b""
    validator_key: bytes = b""
    scheduler: str = ""
    validator: str = ""
    approvals: tuple[str, ...] = ()
    height: int = 0
    authority: bytes = b""


class Organization(Struct, frozen=True):
    """A member: keys, stake, credit and voting power."""

    name: str = ""
    owner: str = ""
    validator_key: bytes = b""
    scheduler: str = ""
    validator: str = ""
    stake_utlk: int = 0
    credit_gflop: int = 0
    power: int = 0
    owner_key: bytes = b""
    listed_nodes: tuple[str, ...] = ()
    credit_rest_mflop: int = 0
    epoch_verdicts: int = 0
    jailed_until_height: int = 0
    punished_height: int = 0
    slashed_utlk: int = 0
    former_keys: tuple[FormerKey, ...] = ()
    left_height: int = 0
    authority: bytes = b""


class Node(Struct, frozen=True):
    """A machine that trains, its stake and its record."""

    id: str = ""
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
    jailed: bool = False
    jailed_until_height: int = 0
    verified_segments: int = 0
    verified_gflop: int = 0
    energy_mj: int = 0
    earned_utlk: int = 0
    slashed_utlk: int = 0
    forged_segments: int = 0
    verified_rest_flop: int = 0
    epoch_mflop: int = 0
    outbound_only: bool = False


class FailureReport(Struct, frozen=True):
    """Who said that a task cannot go on."""

    reporter: str = ""
    kind: str = ""
    message: str = ""


class Task(Struct, frozen=True):
    """A training task and where it stands."""

    id: str = ""
    owner: str = ""
    spec: TaskSpec = TaskSpec()
    phase: TaskPhase = TaskPhase.UNSPECIFIED
    escrow_utlk: int = 0
    spent_utlk: int = 0
    attempt: int = 0
    shards: tuple[Shard, ...] = ()
    next_segment: int = 0
    accepted_segments: int = 0
    beacon: bytes = b""
    created_height: int = 0
    finished_height: int = 0
    failure_kind: str = ""
    failure: str = ""
    model_version: str = ""
    discarded_segments: int = 0
    banned_nodes: tuple[str, ...] = ()
    last_progress_height: int = 0
    placement_reason: str = ""
    trace: str = ""
    start_params_sha256: str = ""
    start_optimizer_sha256: str = ""
    failure_reports: tuple[FailureReport, ...] = ()
    fruitless_attempts: int = 0


class Commitment(Struct, frozen=True):
    """One rank's commitment as it stands in the chain."""

    segment: CommitSegment = CommitSegment()
    node_id: str = ""
    height: int = 0
    tx_hash: bytes = b""


class VerdictVote(Struct, frozen=True):
    """One organization's commit and reveal for a segment."""

    organization: str = ""
    digest: bytes = b""
    salt: bytes = b""
    verdict: bytes = b""
    power: int = 0
    reveal_tx_hash: bytes = b""
    late: bool = False


class Segment(Struct, frozen=True):
    """K steps of a task under one attempt."""

    task_id: str = ""
    attempt: int = 0
    segment: int = 0
    phase: SegmentPhase = SegmentPhase.UNSPECIFIED
    beacon: bytes = b""
    commitments: tuple[Commitment, ...] = ()
    shards: tuple[Shard, ...] = ()
    committed_height: int = 0
    draw: bytes = b""
    draw_rate_ppm: int = 0
    audit_deadline_height: int = 0
    votes: tuple[VerdictVote, ...] = ()
    outcome: Verdict | None = None
    decided_height: int = 0
    start_params_sha256: str = ""
    start_optimizer_sha256: str = ""
    first_step: int = 0
    steps: int = 0
    audit_extensions: int = 0
    quorum_height: int = 0


class Payment(Struct, frozen=True):
    """One movement of tokens and the proof it names."""

    number: int = 0
    height: int = 0
    kind: str = ""
    source: str = ""
    destination: str = ""
    amount_utlk: int = 0
    task_id: str = ""
    segment: int = 0
    proof: str = ""
    note: str = ""


class ModelVersion(Struct, frozen=True):
    """A registered model with its lineage."""

    version: str = ""
    model: str = ""
    number: int = 0
    owner: str = ""
    task_id: str = ""
    params_sha256: str = ""
    code_sha256: str = ""
    data_sha256: str = ""
    parent_version: str = ""
    module: str = ""
    config_json: str = ""
    heldout_correct: int = 0
    heldout_total: int = 0
    licence: str = ""
    height: int = 0
    request_price_utlk: int = 0
    contributors: tuple[str, ...] = ()
    requests: int = 0


class ModelRequest(Struct, frozen=True):
    """One paid request to a model."""

    id: str = ""
    version: str = ""
    sender: str = ""
    node_id: str = ""
    input_sha256: bytes = b""
    output_sha256: bytes = b""
    price_utlk: int = 0
    height: int = 0
    completed_height: int = 0
    state: str = ""
    deadline_height: int = 0


class Unbonding(Struct, frozen=True):
    """Stake on its way back, still slashable."""

    id: str = ""
    subject: str = ""
    owner: str = ""
    amount_utlk: int = 0
    release_height: int = 0


class Supply(Struct, frozen=True):
    """Where all tokens are; the sums agree after every block."""

    genesis_utlk: int = 0
    emitted_utlk: int = 0
    burned_utlk: int = 0
    accounts_utlk: int = 0
    stake_utlk: int = 0
    escrow_utlk: int = 0
    unbonding_utlk: int = 0


class Chain(Struct, frozen=True):
    """Counters of the chain."""

    chain_id: str = ""
    payments: int = 0
    epoch: int = 0


class Params(Struct, frozen=True):
    """The ledger's parameters; integers only."""

    min_fee_utlk: int = 0
    min_node_stake_utlk: int = 0
    slash_ppm: int = 0
    finder_ppm: int = 0
    audit_floor_ppm: int = 0
    probation_segments: int = 0
    validation_ppm: int = 0
    audit_deadline_blocks: int = 0
    request_deadline_blocks: int = 0
    jail_blocks: int = 0
    unbonding_blocks: int = 0
    epoch_blocks: int = 0
    emission_per_epoch_utlk: int = 0
    emission_halving_epochs: int = 0
    emission_compute_ppm: int = 0
    emission_validation_ppm: int = 0
    emission_consensus_ppm: int = 0
    credit_decay_ppm: int = 0
    credit_half_gflop: int = 0
    stall_blocks: int = 0
    max_block_txs: int = 0
    max_block_bytes: int = 0
    max_tx_bytes: int = 0
    max_audit_extensions: int = 0
    reveal_grace_blocks: int = 0


class AmnesiaAccusation(Struct, frozen=True):
    """A validator that must be cleared in time."""

    id: str = ""
    validator_address: bytes = b""
    height: int = 0
    vote_a: bytes = b""
    vote_b: bytes = b""
    accuser: str = ""
    deadline_height: int = 0
    answered: bool = False


class SetMember(Struct, frozen=True):
    """A consensus key and its power."""

    validator_key: bytes = b""
    power: int = 0


class ValidatorsAt(Struct, frozen=True):
    """Who decides blocks from a height on."""

    from_height: int = 0
    members: tuple[SetMember, ...] = ()


Record = (
    AmnesiaAccusation
    | ValidatorsAt
    | Account
    | MembershipApplication
    | Organization
    | Node
    | Task
    | Segment
    | Payment
    | ModelVersion
    | ModelRequest
    | Unbonding
    | Supply
    | Chain
    | Params
)
"""A value of the state tree."""
