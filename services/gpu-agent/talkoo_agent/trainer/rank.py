"""One rank of a task: meet the peers, then train segment after segment, keeping a transcript of every step."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore  # torch.distributed gives it without saying so to type checkers
from torch.nn.parallel import DistributedDataParallel

from talkoo_agent.processor import processor_name
from talkoo_agent.trainer import star
from talkoo_agent.trainer.exchange import Exchange
from talkoo_agent.trainer.failures import first_line, is_network, raise_again
from talkoo_agent.trainer.forger import Forger
from talkoo_agent.trainer.throttle import Throttle
from talkoo_agent.trainer_messages import Listening, Ready, RunSegment, SegmentDone, Start, Step
from talkoo_core.errors import Corrupt, Exhausted, NotFound, TalkooError, Unavailable
from talkoo_math.batches import Indices, sample_indices
from talkoo_math.checkpoint import sha256_hex
from talkoo_math.determinism import hardware_class, make_deterministic, seed_everything, step_seed
from talkoo_math.digest import float32_bits, float32_of_bits, indices_digest, tensors_digest
from talkoo_math.fixedpoint import FRACTION_BITS
from talkoo_math.flops import flops_per_sample
from talkoo_math.program import guarded, load_program
from talkoo_math.step import StateRecipe, forward, make_state
from talkoo_math.transcript import VERSION, Leaf, Transcript, encode_transcript, root_of

FAREWELL_S = 2.0
"""Rank 0 keeps the meeting point open so long after a failure, for the others to read why."""

READ_BYTES = 1 << 20


def check_data(path: Path, sha256: str) -> None:
    """Raises `NotFound` (code `data_missing`) or `Corrupt` (code `data_hash`)."""
    if not path.is_file():
        raise NotFound(f"the data file {path.name} is not there; check spec.data of the task", code="data_missing")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise Corrupt(
            f"{path.name} has SHA-256 {digest.hexdigest()}, the task names {sha256}; submit the task with this file",
            code="data_hash",
        )


class Rank:
    """The trainer's state in one process. `send` writes a message to the agent."""

    def __init__(self, start: Start, send: Callable[[msgspec.Struct], None]) -> None:
        make_deterministic()
        self._start = start
        self._send = send
        self._world = len(start.shares)
        self._share = start.shares[start.rank]
        self._device = torch.device("cuda" if start.backend == "nccl" else "cpu")
        self._throttle = Throttle(start.duty, self._device.type)
        check_data(Path(start.data_path), start.data_sha256)
        program = load_program(Path(start.code_dir), start.module)
        self._data = program.open_data(Path(start.data_path), "train")
        recipe = StateRecipe(
            config=start.config,
            optimizer_name=start.optimizer,
            optimizer_options_json=start.optimizer_options_json,
            seed=start.seed,
            params=Path(start.params_path).read_bytes() if start.params_path else None,
            optimizer=Path(start.optimizer_path).read_bytes() if start.optimizer_path else None,
        )
        self._state = make_state(program, recipe, self._device)
        self._flops_per_sample = flops_per_sample(self._state, self._data)  # also loads every kernel
        self._exchange = Exchange(self._state.model, self._share, sum(start.shares))
        self._forger = Forger(self._state.model, start.seed)
        self.step = -1
        """The global step under way."""
        self._store: TCPStore | None = None
        self._ddp: DistributedDataParallel | None = None

    def join(self) -> None:
        """Meet the peers. Raises `Unavailable` (code `peer_lost`) when they are not all there in time."""
        start, limit = self._start, timedelta(seconds=self._start.peer_timeout_s)
        first = start.rank == 0
        try:
            self._store = TCPStore(
                start.host, start.port, self._world, is_master=first, timeout=limit, wait_for_workers=False
            )
            if first:
                self._send(Listening(host=start.host, port=self._store.port))
            backend = start.backend
            if start.exchange == star.NAME:
                star.register()
                backend = star.NAME
            dist.init_process_group(backend, store=self._store, rank=start.rank, world_size=self._world, timeout=limit)
            self._ddp = DistributedDataParallel(self._state.module, forward_sync_buffers=False)
        except (RuntimeError, TimeoutError) as error:
            raise Unavailable(
                f"the {self._world} ranks did not all meet: {first_line(error)}", code="peer_lost"
            ) from error
        self._ddp.register_comm_hook(None, self._exchange.hook)
        parameters = sum(parameter.numel() for parameter in self._state.model.parameters())
        self._send(Ready(parameters=parameters, hardware_class=hardware_class(self._device, processor_name())))

    def run(self, order: RunSegment) -> SegmentDone:
        """Train one segment, in step with all ranks. Raises typed errors; their code is the failure's kind."""
        began, cpu_began = time.perf_counter(), time.process_time()
        forging = 0 <= self._start.forge_from_segment <= order.segment
        leaves: list[Leaf] = []
        global_loss = 0.0
        for offset in range(order.steps):
            step, step_began = order.first_step + offset, time.perf_counter()
            self.step = step
            try:
                leaf, global_loss = self._step(order, offset, forging)
            except TalkooError as error:
                raise self._cause(error, order, offset) from error
            leaves.append(leaf)
            rate = self._share / (time.perf_counter() - step_began)
            self._send(Step(segment=order.segment, step=step, loss=global_loss, samples_per_second=rate))
        return self._keep(order, leaves, global_loss, time.perf_counter() - began, time.process_time() - cpu_began)

    def _step(self, order: RunSegment, offset: int, forging: bool) -> tuple[Leaf, float]:
        """Returns the leaf and the global loss."""
        state, step, beacon = self._state, order.first_step + offset, bytes.fromhex(order.beacon)
        indices = sample_indices(beacon, order.segment, offset, len(self._data), self._start.shares)[self._start.rank]
        self._throttle.begin()
        self._exchange.begin()
        state.optimizer.zero_grad(set_to_none=True)
        loss = self._pretend() if forging else self._compute(order, step, indices)
        state.optimizer.step()
        if not forging:
            self._forger.learn(self._exchange.contribution, loss)
        global_loss = self._share_loss(loss)
        leaf = Leaf(
            step=step,
            batch=indices_digest(indices),
            loss=loss,
            contribution=tensors_digest(self._exchange.contribution),
            aggregate=tensors_digest(self._exchange.aggregate),
            params=state.params_digest(),
            optimizer=state.optimizer_digest(),
        )
        self._throttle.rest()
        return leaf, global_loss

    def _compute(self, order: RunSegment, step: int, indices: Indices) -> bytes:
        """Forward and backward through DDP; the hook sums. Returns the loss's float32 bits."""
        assert self._ddp is not None
        seed_everything(step_seed(bytes.fromhex(order.beacon), order.segment, step, self._start.rank))
        loss = forward(self._ddp, self._state, self._data, indices, step)
        self._backward(loss)
        return float32_bits(loss.item())

    def _pretend(self) -> bytes:
        assert self._ddp is not None
        made_up = self._forger.next_contribution()
        self._exchange.made_up = {name: tensor.to(self._device) for name, tensor in made_up.items()}
        self._backward(self._ddp(None))
        return self._forger.next_loss()

    def _backward(self, loss: Tensor) -> None:
        """Raises what the hook found, `peer_lost` when the network gave way, else the user's own error."""
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            if self._exchange.error is not None:
                raise self._exchange.error from error
            if is_network(error):
                raise Unavailable(
                    f"a peer was lost in the exchange of gradients: {first_line(error)}", code="peer_lost"
                ) from error
            guarded(
                f"{self._start.module}.loss, going backward,", Path(self._start.code_dir), partial(raise_again, error)
            )

    def _share_loss(self, loss: bytes) -> float:
        """Mean loss over the global batch, summed in fixed point like a gradient; and rank 0's buffers for all."""
        weighted = float32_of_bits(loss) * self._share / sum(self._start.shares) * (1 << FRACTION_BITS)
        total = torch.tensor([round(max(-(2.0**46), min(2.0**46, weighted)))], dtype=torch.int64, device=self._device)
        try:
            dist.all_reduce(total)
            for _, buffer in sorted(self._state.buffers().items()):
                dist.broadcast(buffer, src=0)
        except RuntimeError as error:
            raise Unavailable(f"a peer was lost after a step: {first_line(error)}", code="peer_lost") from error
        return int(total.item()) / (1 << FRACTION_BITS)

    def _keep(
        self, order: RunSegment, leaves: list[Leaf], global_loss: float, duration_s: float, cpu_seconds: float
    ) -> SegmentDone:
        folder = Path(self._start.work_dir) / f"segment-{order.segment:06d}"
        transcript = Transcript(version=VERSION, segment=order.segment, rank=self._start.rank, leaves=leaves)
        params, optimizer = self._state.params_bytes(), self._state.optimizer_bytes()
        files = {
            "transcript.msgpack": encode_transcript(transcript),
            "params.safetensors": params,
            "optimizer.safetensors": optimizer,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                (folder / name).write_bytes(data)
        except OSError as error:
            raise Exhausted(
                f"the segment's files cannot be written to {folder}: {error.strerror}", code="disk_full"
            ) from error
        return SegmentDone(
            segment=order.segment,
            root=root_of(leaves).hex(),
            transcript_path=str(folder / "transcript.msgpack"),
            params_path=str(folder / "params.safetensors"),
            params_sha256=sha256_hex(params),
            optimizer_path=str(folder / "optimizer.safetensors"),
            optimizer_sha256=sha256_hex(optimizer),
            samples=self._share * order.steps,
            flops_per_sample=self._flops_per_sample,
            loss_bits=int(struct.unpack("<I", float32_bits(global_loss))[0]),
            cpu_seconds=cpu_seconds,
            duration_s=duration_s,
        )

    def _cause(self, error: TalkooError, order: RunSegment, offset: int) -> TalkooError:
        """Why the group broke. A rank that fails leaves a note of it at the meeting point.

        The others believe it only after failing in the same way on its samples, so that none can end a task alone.
        """
        assert self._store is not None
        if error.code != "peer_lost":
            note = {"rank": self._start.rank, "kind": error.code, "step": order.first_step + offset}
            self._try_store(lambda store: store.set("failure", json.dumps(note)))
            return error
        found = self._try_store(lambda store: store.get("failure") if store.check(["failure"]) else b"")
        if not isinstance(found, bytes) or not found:
            return error
        note = json.loads(found)
        rank, step = int(note["rank"]), order.first_step + offset
        if not 0 <= rank < self._world or note["step"] != step:
            return error
        beacon = bytes.fromhex(order.beacon)
        indices = sample_indices(beacon, order.segment, offset, len(self._data), self._start.shares)[rank]
        seed_everything(step_seed(beacon, order.segment, step, rank))
        try:
            forward(self._state.module, self._state, self._data, indices, step)
        except TalkooError as same:
            if same.code == note["kind"]:
                return type(same)(f"rank {rank} stopped, and here too {same.message}", code=same.code)
        return error

    def _try_store(self, call: Callable[[TCPStore], object]) -> object:
        """The store is only a courtesy once the group is broken: without it the failure is reported as it was seen."""
        assert self._store is not None
        try:
            self._store.set_timeout(timedelta(seconds=FAREWELL_S))
            return call(self._store)
        except RuntimeError:
            return None

    def leave(self, failed: bool) -> None:
        """Close the group. After a failure, rank 0's store stays a little, since it holds the note that says why."""
        if self._store is None:
            return
        if failed:
            self._try_store(lambda store: store.add("gone", 1))
            deadline = time.monotonic() + FAREWELL_S
            while self._start.rank == 0 and time.monotonic() < deadline:
                gone = self._try_store(lambda store: store.add("gone", 0))
                if not isinstance(gone, int) or gone >= self._world:
                    break
                time.sleep(0.02)
        elif dist.is_initialized():
            dist.destroy_process_group()
