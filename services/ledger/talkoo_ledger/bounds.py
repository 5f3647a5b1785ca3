"""What a single message may hold, whatever the state: sizes, ranges and forms, each bound with a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from talkoo_core.amounts import MAX_AMOUNT_UTLK, PPM
from talkoo_core.errors import InvalidInput
from talkoo_core.ids import check_name, is_address, parse_address
from talkoo_ledger import messages as m

ID_MAX_BYTES = 90
VOTE_MAX_BYTES = 256
"""Of a vote without extension in CometBFT's encoding."""
ANSWER_VOTES_MAX = 256
TEXT_MAX_BYTES = 255
AUTHORITY_MAX_BYTES = 4096
"""Of a certificate authority (X.509, DER)."""
JSON_MAX_BYTES = 16 * 1024
JSON_MAX_DEPTH = 32
FAILURE_MAX_BYTES = 1024
REASON_MAX_BYTES = 1024
HASH_BYTES = 32
GANG_MAX_NODES = 64
BATCH_MAX_SAMPLES = 1 << 20
STEPS_MAX = 10_000_000
SEGMENTS_MAX = 100_000
FLOPS_MAX = 1 << 62
"""Of one segment over all ranks: far beyond any machine, and a sum of them still fits 64 bits."""
ENERGY_MAX_MJ = 10**12
"""For one segment or request: 277 kWh, so that sums stay far below 64 bits."""
PRICE_MAX_UTLK = 10**15
BLOB_MAX_BYTES = 1 << 40
OPTIMIZERS = ("sgd", "adam", "adamw")
NODE_LOST = "node_lost"
FAILURE_KINDS = ("missing_module", "model_raised", "loss_nan", "data_missing", "data_hash", "bad_program", NODE_LOST)

_BRACKETS = re.compile(r"[\[\]{}]")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_HEX_64 = re.compile(r"[0-9a-f]{64}")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_ENDPOINT = re.compile(r"[A-Za-z0-9.\-\[\]:]{1,249}:\d{1,5}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(message, code="bad_field")


def check_text(text: str, what: str, most_bytes: int, least_bytes: int = 0) -> None:
    size = len(text.encode())
    if not least_bytes <= size <= most_bytes:
        raise _wrong(f"{what} has {size} bytes; it takes {least_bytes} to {most_bytes}")


def check_amount(amount_utlk: int, what: str, least: int = 0) -> None:
    if not least <= amount_utlk <= MAX_AMOUNT_UTLK:
        raise _wrong(f"{what} is {amount_utlk}; it takes {least} to {MAX_AMOUNT_UTLK}")


def check_range(value: int, what: str, least: int, most: int) -> None:
    if not least <= value <= most:
        raise _wrong(f"{what} is {value}; it takes {least} to {most}")


def check_hex(text: str, what: str) -> None:
    if not _HEX_64.fullmatch(text):
        raise _wrong(f"{what} is not a SHA-256 in 64 lower-case hex digits")


def check_bytes(data: bytes, what: str, size: int = HASH_BYTES) -> None:
    if len(data) != size:
        raise _wrong(f"{what} has {len(data)} bytes, it takes {size}")


def check_address(text: str) -> None:
    parse_address(text)
    if text != text.lower():
        raise InvalidInput(f"{text!r} must be written in lower case here", code="bad_address")


def check_json_object(text: str, what: str) -> None:
    check_text(text, what, JSON_MAX_BYTES)
    depth = 0
    for bracket in _BRACKETS.findall(_JSON_STRING.sub("", text)):
        # Counted before parsing: how deep a parser can go differs from machine to machine.
        depth += 1 if bracket in "[{" else -1
        if depth > JSON_MAX_DEPTH:
            raise _wrong(f"{what} is nested more than {JSON_MAX_DEPTH} levels deep")
    try:
        value = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError as error:
        raise _wrong(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _wrong(f"{what} is not a JSON object")


def check_message(message: m.Message) -> None:
    """Raises InvalidInput (`bad_field`, `bad_address`, `bad_name`) where a message breaks a bound."""
    _CHECKS[type(message)](message)


def _transfer(message: m.Transfer) -> None:
    check_address(message.to)
    check_amount(message.amount_utlk, "amount_utlk", least=1)


def _stake(message: m.Bond | m.Unbond) -> None:
    if is_address(message.subject):
        check_address(message.subject)
    else:
        check_name(message.subject, "subject")
    check_amount(message.amount_utlk, "amount_utlk", least=1)


def _apply_membership(message: m.ApplyMembership) -> None:
    check_name(message.name, "organization")
    check_bytes(message.owner_key, "owner_key")
    _consensus_key(message)
    check_address(message.scheduler)
    check_address(message.validator)
    # What it holds is judged where it is sent and where it is trusted, never here: parsers of certificates differ from
    # version to version, and members that disagree about one would part.
    if len(message.authority) > AUTHORITY_MAX_BYTES:
        raise _wrong(f"authority has {len(message.authority)} bytes; it takes at most {AUTHORITY_MAX_BYTES}")


def _consensus_key(message: m.ApplyMembership | m.RotateKey) -> None:
    check_bytes(message.validator_key, "validator_key")
    check_bytes(message.proof_of_possession, "proof_of_possession", 64)


def _approve_member(message: m.ApproveMember) -> None:
    check_name(message.name, "organization")
    check_bytes(message.validator_key, "validator_key")


def _rotate_key(message: m.RotateKey) -> None:
    check_name(message.organization, "organization")
    _consensus_key(message)


def _leave_federation(message: m.LeaveFederation) -> None:
    check_name(message.organization, "organization")


def _register_node(message: m.RegisterNode) -> None:
    check_name(message.name, "node")
    check_name(message.organization, "organization")
    if not _ENDPOINT.fullmatch(message.endpoint):
        raise _wrong(f"endpoint {message.endpoint!r} is not host:port")
    check_text(message.hardware_class, "hardware_class", TEXT_MAX_BYTES, 1)
    check_text(message.device, "device", TEXT_MAX_BYTES)
    check_text(message.power_source, "power_source", 16)
    check_amount(message.stake_utlk, "stake_utlk")
    for name in ("price_utlk_per_gflop", "request_price_utlk"):
        check_range(getattr(message, name), name, 0, PRICE_MAX_UTLK)
    for name in ("memory_bytes", "speed_flops", "power_mw"):
        check_range(getattr(message, name), name, 0, FLOPS_MAX)
    if message.endorsement:
        check_bytes(message.endorsement, "endorsement", 64)


def _blob(blob: m.BlobRef, what: str) -> None:
    check_hex(blob.sha256, f"{what}.sha256")
    check_range(blob.size_bytes, f"{what}.size_bytes", 1, BLOB_MAX_BYTES)


def _spec(spec: m.TaskSpec) -> None:
    check_name(spec.name, "task")
    if spec.mode != "ddp":
        raise _wrong(f"mode {spec.mode!r} is not known; the modes are: ddp")
    _blob(spec.code, "code")
    _blob(spec.data, "data")
    if not _MODULE.fullmatch(spec.module):
        raise _wrong(f"module {spec.module!r} is not the name of a Python module")
    if not _FILE_NAME.fullmatch(spec.data_name):
        raise _wrong(f"data_name {spec.data_name!r} is not a plain file name")
    check_json_object(spec.config_json, "config_json")
    if spec.optimizer.name not in OPTIMIZERS:
        raise _wrong(f"optimizer {spec.optimizer.name!r} is not known; the optimizers are: {', '.join(OPTIMIZERS)}")
    check_json_object(spec.optimizer.options_json, "options_json")
    check_name(spec.model_name, "model")
    check_text(spec.parent_version, "parent_version", ID_MAX_BYTES)
    check_text(spec.licence, "licence", TEXT_MAX_BYTES)
    _spec_numbers(spec)


def _spec_numbers(spec: m.TaskSpec) -> None:
    check_range(spec.global_batch, "global_batch", 1, BATCH_MAX_SAMPLES)
    check_range(spec.steps, "steps", 1, STEPS_MAX)
    check_range(spec.steps_per_segment, "steps_per_segment", 1, STEPS_MAX)
    check_range(-(-spec.steps // spec.steps_per_segment), "number of segments", 1, SEGMENTS_MAX)
    check_range(spec.max_nodes, "max_nodes", 1, min(GANG_MAX_NODES, spec.global_batch))
    check_range(spec.min_nodes, "min_nodes", 1, spec.max_nodes)
    check_range(spec.memory_bytes, "memory_bytes", 0, FLOPS_MAX)
    check_range(spec.price_utlk_per_gflop, "price_utlk_per_gflop", 0, PRICE_MAX_UTLK)
    check_range(spec.audit_rate_ppm, "audit_rate_ppm", 0, PPM)
    check_range(spec.flops_per_sample, "flops_per_sample", 1, FLOPS_MAX)
    segment_flops = spec.flops_per_sample * spec.global_batch * min(spec.steps, spec.steps_per_segment)
    check_range(segment_flops, "floating-point operations of a segment", 1, FLOPS_MAX)
    check_range(spec.request_price_utlk, "request_price_utlk", 0, PRICE_MAX_UTLK)


def _create_task(message: m.CreateTask) -> None:
    _spec(message.spec)
    check_amount(message.escrow_utlk, "escrow_utlk")


def _fund_task(message: m.FundTask) -> None:
    check_text(message.task_id, "task_id", ID_MAX_BYTES, 1)
    check_amount(message.amount_utlk, "amount_utlk", least=1)


def _place_task(message: m.PlaceTask) -> None:
    check_text(message.task_id, "task_id", ID_MAX_BYTES, 1)
    check_text(message.reason, "reason", REASON_MAX_BYTES)
    check_range(len(message.shards), "number of shards", 1, GANG_MAX_NODES)
    for shard in message.shards:
        check_address(shard.node_id)
        check_range(shard.samples, "samples", 1, BATCH_MAX_SAMPLES)
        check_range(shard.price_utlk_per_gflop, "price_utlk_per_gflop", 0, PRICE_MAX_UTLK)


def _commit_segment(message: m.CommitSegment) -> None:
    check_text(message.task_id, "task_id", ID_MAX_BYTES, 1)
    check_bytes(message.root, "root")
    for name in ("transcript_sha256", "params_sha256", "optimizer_sha256"):
        check_hex(getattr(message, name), name)
    check_range(message.energy_mj, "energy_mj", 0, ENERGY_MAX_MJ)


def _commit_verdict(message: m.CommitVerdict) -> None:
    check_text(message.task_id, "task_id", ID_MAX_BYTES, 1)
    check_bytes(message.digest, "digest")


def _reveal_verdict(message: m.RevealVerdict) -> None:
    check_bytes(message.salt, "salt")


def check_verdict(verdict: m.Verdict) -> None:
    check_text(verdict.task_id, "task_id", ID_MAX_BYTES, 1)
    check_range(len(verdict.findings), "number of findings", 0, GANG_MAX_NODES)
    check_range(verdict.heldout_correct, "heldout_correct", 0, verdict.heldout_total)
    for finding in verdict.findings:
        check_text(finding.reason, "reason", REASON_MAX_BYTES)


def _cancel_task(message: m.CancelTask) -> None:
    check_text(message.task_id, "task_id", ID_MAX_BYTES, 1)


def _fail_task(message: m.FailTask) -> None:
    check_text(message.task_id, "task_id", ID_MAX_BYTES, 1)
    check_text(message.message, "message", FAILURE_MAX_BYTES)
    if message.kind not in FAILURE_KINDS:
        raise _wrong(f"failure kind {message.kind!r} is not known; the kinds are: {', '.join(FAILURE_KINDS)}")


def _request_model(message: m.RequestModel) -> None:
    check_text(message.version, "version", ID_MAX_BYTES, 1)
    check_address(message.node_id)
    check_bytes(message.input_sha256, "input_sha256")
    check_amount(message.price_utlk, "price_utlk")


def _complete_request(message: m.CompleteRequest) -> None:
    check_text(message.request_id, "request_id", ID_MAX_BYTES, 1)
    check_bytes(message.output_sha256, "output_sha256")
    check_range(message.energy_mj, "energy_mj", 0, ENERGY_MAX_MJ)


def _accuse_amnesia(message: m.AccuseAmnesia) -> None:
    for vote in (message.vote_a, message.vote_b):
        if not 0 < len(vote) <= VOTE_MAX_BYTES:
            raise _wrong(f"a vote has 1 to {VOTE_MAX_BYTES} bytes, not {len(vote)}")


def _answer_accusation(message: m.AnswerAccusation) -> None:
    check_text(message.accusation, "accusation", TEXT_MAX_BYTES, 1)
    if not 0 < len(message.votes) <= ANSWER_VOTES_MAX:
        raise _wrong(f"an answer has 1 to {ANSWER_VOTES_MAX} votes, not {len(message.votes)}")
    for vote in message.votes:
        if not 0 < len(vote) <= VOTE_MAX_BYTES:
            raise _wrong(f"a vote has 1 to {VOTE_MAX_BYTES} bytes, not {len(vote)}")


_CHECKS: dict[type[Any], Callable[[Any], None]] = {
    m.AccuseAmnesia: _accuse_amnesia,
    m.AnswerAccusation: _answer_accusation,
    m.Transfer: _transfer,
    m.Bond: _stake,
    m.Unbond: _stake,
    m.ApplyMembership: _apply_membership,
    m.ApproveMember: _approve_member,
    m.RotateKey: _rotate_key,
    m.LeaveFederation: _leave_federation,
    m.RegisterNode: _register_node,
    m.CreateTask: _create_task,
    m.FundTask: _fund_task,
    m.PlaceTask: _place_task,
    m.CommitSegment: _commit_segment,
    m.CommitVerdict: _commit_verdict,
    m.RevealVerdict: _reveal_verdict,
    m.CancelTask: _cancel_task,
    m.FailTask: _fail_task,
    m.RequestModel: _request_model,
    m.CompleteRequest: _complete_request,
}
