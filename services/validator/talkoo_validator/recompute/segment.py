"""One order to one answer: load the program, walk the segment, measure the held-out split. Uses torch."""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.utils.flop_counter  # loaded before the fork, so that no audit pays for it

from talkoo_core.errors import Corrupt, InvalidInput, TalkooError
from talkoo_math.determinism import hardware_class, make_deterministic
from talkoo_math.evaluate import evaluate
from talkoo_math.flops import flops_per_sample
from talkoo_math.program import Program, is_out_of_memory, load_program
from talkoo_math.recompute import RankClaim, SegmentPlan, recompute_segment
from talkoo_math.step import StateRecipe, TrainingState, make_state
from talkoo_math.transcript import Transcript, decode_transcript
from talkoo_validator.orders import Claim, Failed, Finding, Recompute, Recomputed


def this_hardware_class() -> str:
    """Asks CUDA nothing: a process that has touched it cannot be forked."""
    return hardware_class(torch.device("cpu"), platform.processor())


def answer_to(order: Recompute) -> Recomputed | Failed:
    """Never raises: whatever stops the computation becomes a `Failed` with its kind."""
    try:
        return _recomputed(order)
    except TalkooError as error:
        return Failed(kind=error.code, message=error.message)
    except Exception as error:
        if is_out_of_memory(error):
            return Failed(kind="out_of_memory", message="the validator ran out of memory; give its machine more")
        sys.excepthook(type(error), error, error.__traceback__)
        return Failed(kind="internal", message=f"{type(error).__name__}: {error}")


def _recomputed(order: Recompute) -> Recomputed:
    began, cpu_began = time.perf_counter(), time.process_time()
    make_deterministic()
    program = load_program(Path(order.code_dir), order.module)
    state = make_state(program, _recipe(order), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    data = program.open_data(Path(order.data_path), "train")
    counted = flops_per_sample(state, data)
    plan = SegmentPlan(
        beacon=bytes.fromhex(order.beacon),
        segment=order.segment,
        first_step=order.first_step,
        steps=order.steps,
        shares=tuple(order.shares),
    )
    found = recompute_segment(state, data, plan, [_claim(claim) for claim in order.claims])
    disputed = found.disputed
    if found.honest and counted != order.flops_per_sample:
        disputed = (
            f"the task declares {order.flops_per_sample:,} operations for a sample; its program needs {counted:,}: "
            "work that is not there is not paid"
        )
    correct, total = (0, 0)
    if order.evaluate and found.honest and not disputed:
        correct, total = _held_out(program, state, order)
    return Recomputed(
        findings=[
            Finding(rank=rank.rank, honest=rank.honest, first_bad_step=rank.first_bad_step, reason=rank.reason)
            for rank in found.ranks
        ],
        steps_checked=found.steps_checked,
        disputed=disputed,
        params_sha256=found.params_sha256,
        optimizer_sha256=found.optimizer_sha256,
        heldout_correct=correct,
        heldout_total=total,
        duration_s=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu_began,
    )


def _recipe(order: Recompute) -> StateRecipe:
    try:
        config: Any = json.loads(order.config_json or "{}")
    except ValueError as error:
        raise InvalidInput(f"the task's config is not JSON: {error}", code="bad_program") from error
    return StateRecipe(
        config=config,
        optimizer_name=order.optimizer,
        optimizer_options_json=order.optimizer_options_json,
        seed=order.seed,
        params=Path(order.params_path).read_bytes() if order.params_path else None,
        optimizer=Path(order.optimizer_path).read_bytes() if order.optimizer_path else None,
    )


def _claim(claim: Claim) -> RankClaim:
    """What a rank uploaded counts against it when it is not a transcript."""
    transcript: Transcript | None
    try:
        transcript = decode_transcript(Path(claim.transcript_path).read_bytes())
    except Corrupt:
        transcript = None
    return RankClaim(bytes.fromhex(claim.root), claim.params_sha256, claim.optimizer_sha256, transcript)


def _held_out(program: Program, state: TrainingState, order: Recompute) -> tuple[int, int]:
    """(correct, total); (0, 0) says "not measured" where the program has no held-out split that works."""
    try:
        return evaluate(state, program.open_data(Path(order.data_path), "heldout"))
    except TalkooError as error:
        print(f"the held-out result is not measured: {error.message}", file=sys.stderr)  # noqa: T201  # the child's log
        return 0, 0
