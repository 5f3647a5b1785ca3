"""A gang in one process: it trains a tiny model with the production steps and leaves what real ranks leave."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from talkoo_api.ledger.v1 import state_pb2, tx_pb2

from talkoo_math.batches import sample_indices
from talkoo_math.determinism import make_deterministic, seed_everything, step_seed
from talkoo_math.digest import float32_bits, indices_digest, tensors_digest
from talkoo_math.evaluate import evaluate
from talkoo_math.fixedpoint import sum_contributions
from talkoo_math.flops import flops_per_sample
from talkoo_math.program import load_program
from talkoo_math.step import StateRecipe, apply_aggregate, contribution_of, make_state
from talkoo_math.transcript import VERSION, Leaf, Transcript, encode_transcript, root_of
from talkoo_runtime.bundle import pack_folder

SHARES = (5, 3)
STEPS_PER_SEGMENT = 3
SEGMENTS = 2
TASK = "task-00112233aabbccdd"
OPTIONS = '{"lr":"0.05"}'
PROGRAM = """
import numpy as np, torch
from torch import nn
import tiny_size

def build_model(config):
    hidden = config["hidden"]
    return nn.Sequential(nn.Linear(4, hidden), nn.Dropout(0.1), nn.Linear(hidden, tiny_size.CLASSES))

class Points:
    def __init__(self, x, y):
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
    def __len__(self):
        return len(self.y)
    def batch(self, indices):
        return self.x[indices], self.y[indices]

def open_data(path, split):
    with np.load(path) as file:
        part = slice(0, 30) if split == "train" else slice(30, 40)
        return Points(file["x"][part], file["y"][part])

def loss(model, batch):
    print("a user's print must not disturb the protocol")
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def correct(model, batch):
    return int((model(batch[0]).argmax(1) == batch[1]).sum())

def predict(model, inputs):
    return [0 for _ in inputs]
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def beacon_for(segment: int) -> bytes:
    return hashlib.sha256(f"beacon {segment}".encode()).digest()


@dataclass
class Gang:
    """Blobs by SHA-256, the task's spec, and the segments as the ledger would hold them when they are audited."""

    folder: Path
    blobs: dict[str, bytes] = field(default_factory=dict)
    spec: tx_pb2.TaskSpec = field(default_factory=tx_pb2.TaskSpec)
    segments: list[state_pb2.Segment] = field(default_factory=list)
    flops: int = 0
    heldout: tuple[int, int] = (0, 0)
    """(correct, total) after the last segment."""

    def put(self, data: bytes) -> str:
        self.blobs[sha256(data)] = data
        return sha256(data)

    def path(self, blob: str) -> Path:
        """The blob as a file."""
        path = self.folder / "blobs" / blob
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.blobs[blob])
        return path


def make_gang(
    folder: Path,
    beacon: Callable[[int], bytes] = beacon_for,
    task_id: str = TASK,
    hand_in: Callable[[state_pb2.Segment], None] = lambda _: None,
) -> Gang:
    """Trains `SEGMENTS` segments honestly; `hand_in` gets each before the next one's beacon is asked."""
    make_deterministic()
    code = folder / "code"
    code.mkdir(parents=True)
    (code / "tiny.py").write_text(PROGRAM)
    (code / "tiny_size.py").write_text("CLASSES = 3\n")
    random = np.random.default_rng(3)
    x = random.standard_normal((40, 4)).astype(np.float32)
    np.savez(folder / "points.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    gang = Gang(folder)
    data = (folder / "points.npz").read_bytes()
    gang.spec = tx_pb2.TaskSpec(
        name="tiny",
        mode="ddp",
        code=tx_pb2.BlobRef(sha256=gang.put(pack_folder(code)), size_bytes=1),
        module="tiny",
        data=tx_pb2.BlobRef(sha256=gang.put(data), size_bytes=len(data)),
        data_name="points.npz",
        config_json=json.dumps({"hidden": 6}),
        optimizer=tx_pb2.Optimizer(name="adam", options_json=OPTIONS),
        global_batch=sum(SHARES),
        steps=STEPS_PER_SEGMENT * SEGMENTS,
        steps_per_segment=STEPS_PER_SEGMENT,
        seed=7,
        model_name="tiny",
    )
    _train(gang, beacon, task_id, code, hand_in)
    return gang


def _train(
    gang: Gang,
    beacon: Callable[[int], bytes],
    task_id: str,
    code: Path,
    hand_in: Callable[[state_pb2.Segment], None],
) -> None:
    program = load_program(code, "tiny")
    state = make_state(program, StateRecipe({"hidden": 6}, "adam", OPTIONS, seed=7), torch.device("cpu"))
    data = program.open_data(gang.folder / "points.npz", "train")
    gang.flops = gang.spec.flops_per_sample = flops_per_sample(state, data)
    start_params = start_optimizer = ""
    for segment in range(SEGMENTS):
        leaves: list[list[Leaf]] = [[] for _ in SHARES]
        for offset in range(STEPS_PER_SEGMENT):
            step = segment * STEPS_PER_SEGMENT + offset
            indices = sample_indices(beacon(segment), segment, offset, len(data), SHARES)
            contributions = []
            for rank, own in enumerate(indices):
                seed_everything(step_seed(beacon(segment), segment, step, rank))
                contributions.append(contribution_of(state, data, own, step, sum(SHARES)))
            aggregate = sum_contributions([contribution.gradients for contribution in contributions])
            apply_aggregate(state, aggregate)
            for rank, own in enumerate(indices):
                leaves[rank].append(
                    Leaf(
                        step=step,
                        batch=indices_digest(own),
                        loss=contributions[rank].loss,
                        contribution=tensors_digest(contributions[rank].gradients),
                        aggregate=tensors_digest(aggregate),
                        params=state.params_digest(),
                        optimizer=state.optimizer_digest(),
                    )
                )
        record = state_pb2.Segment(
            task_id=task_id,
            attempt=1,
            segment=segment,
            phase=state_pb2.SEGMENT_PHASE_AUDITED,
            beacon=beacon(segment),
            shards=[tx_pb2.Shard(node_id=f"node{rank}", rank=rank, samples=n) for rank, n in enumerate(SHARES)],
            first_step=segment * STEPS_PER_SEGMENT,
            steps=STEPS_PER_SEGMENT,
            start_params_sha256=start_params,
            start_optimizer_sha256=start_optimizer,
            audit_deadline_height=100,
        )
        start_params, start_optimizer = gang.put(state.params_bytes()), gang.put(state.optimizer_bytes())
        for rank, own_leaves in enumerate(leaves):
            transcript = Transcript(version=VERSION, segment=segment, rank=rank, leaves=own_leaves)
            record.commitments.append(commitment(gang, record, rank, transcript, start_params, start_optimizer))
        gang.segments.append(record)
        hand_in(record)
    gang.heldout = evaluate(state, program.open_data(gang.folder / "points.npz", "heldout"))


def commitment(
    gang: Gang, record: state_pb2.Segment, rank: int, transcript: Transcript, params: str, optimizer: str
) -> state_pb2.Commitment:
    samples = record.shards[rank].samples * record.steps
    return state_pb2.Commitment(
        node_id=record.shards[rank].node_id,
        segment=tx_pb2.CommitSegment(
            task_id=record.task_id,
            attempt=record.attempt,
            segment=record.segment,
            rank=rank,
            root=root_of(transcript.leaves),
            transcript_sha256=gang.put(encode_transcript(transcript)),
            params_sha256=params,
            optimizer_sha256=optimizer,
            samples=samples,
            flops=samples * gang.flops,
        ),
    )


def with_forged_loss(gang: Gang, segment: int, rank: int, step: int) -> state_pb2.Segment:
    """The same segment, but `rank` claims another loss at one step, with a transcript that fits its root."""
    from talkoo_math.transcript import decode_transcript

    record = state_pb2.Segment()
    record.CopyFrom(gang.segments[segment])
    old = record.commitments[rank].segment
    transcript = decode_transcript(gang.blobs[old.transcript_sha256])
    leaves = [
        Leaf(leaf.step, leaf.batch, float32_bits(0.125), leaf.contribution, leaf.aggregate, leaf.params, leaf.optimizer)
        if leaf.step == step
        else leaf
        for leaf in transcript.leaves
    ]
    forged = Transcript(version=VERSION, segment=segment, rank=rank, leaves=leaves)
    record.commitments[rank].CopyFrom(commitment(gang, record, rank, forged, old.params_sha256, old.optimizer_sha256))
    return record


@pytest.fixture(scope="session")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Gang:
    return make_gang(tmp_path_factory.mktemp("gang"))


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float = 20.0) -> None:
    """Poll a condition until it holds."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"still not: {what}"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """This module's functions, for tests that cannot import it by name."""
    return sys.modules[__name__]
