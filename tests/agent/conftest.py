"""Real trainer children, spoken to over their pipes; the driver that stands in for NVIDIA's; settings."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import NoReturn, TypeVar

import msgspec
import pytest
from talkoo_agent.settings import AgentSettings
from talkoo_agent.trainer_messages import (
    ChildFailed,
    Listening,
    Ready,
    RunSegment,
    SegmentDone,
    Start,
    Step,
    from_trainer,
    line_of,
)

from talkoo_core.errors import NotFound, TalkooError
from talkoo_sim.stand_in_nvml import StandInDriver

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
CHILD_DEADLINE_S = 120.0
M = TypeVar("M", bound=msgspec.Struct)


def digits_start(work_dir: Path, rank: int, shares: list[int], port: int, **changes: object) -> Start:
    """A `start` message for the digits example."""
    data = DIGITS / "digits.npz"
    fields: dict[str, object] = {
        "task": "task-test",
        "rank": rank,
        "shares": shares,
        "host": "127.0.0.1",
        "port": port,
        "code_dir": str(DIGITS),
        "module": "digits",
        "config": {"channels": 4},
        "data_path": str(data),
        "data_sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
        "optimizer": "adam",
        "optimizer_options_json": '{"lr":"0.005"}',
        "seed": 7,
        "work_dir": str(work_dir / f"rank-{rank}"),
    }
    return Start(**(fields | changes))  # type: ignore[arg-type]


class Trainer:
    """One child. Its lines are read by a thread into a queue, so that no test can hang on a pipe."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.errors = folder / "stderr.txt"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "talkoo_agent.trainer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        self._lines: Queue[bytes] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def send(self, message: msgspec.Struct) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line_of(message))
        self.process.stdin.flush()

    def next(self, kind: type[M]) -> M:
        """The next message of this kind; steps in between are passed over."""
        while True:
            line = self._lines.get(timeout=CHILD_DEADLINE_S)
            assert line, f"the trainer ended early: {self.errors.read_text()}"
            message = from_trainer.decode(line)
            if isinstance(message, kind):
                return message
            assert not isinstance(message, ChildFailed), message
            assert isinstance(message, Step | Listening | Ready | SegmentDone)

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(CHILD_DEADLINE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(CHILD_DEADLINE_S)
        self._reader.join(CHILD_DEADLINE_S)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


class Group:
    """All ranks of one attempt."""

    def __init__(self, folder: Path, shares: list[int], changes: list[dict[str, object]]) -> None:
        self.folder, self.shares = folder, shares
        self.trainers = [Trainer(folder / f"rank-{rank}") for rank in range(len(shares))]
        try:
            self._meet(changes)
        except BaseException:
            self.kill()
            raise

    def _meet(self, changes: list[dict[str, object]]) -> None:
        folder, shares = self.folder, self.shares
        self.trainers[0].send(digits_start(folder, 0, shares, 0, **changes[0]))
        port = self.trainers[0].next(Listening).port
        for rank, trainer in enumerate(self.trainers[1:], start=1):
            trainer.send(digits_start(folder, rank, shares, port, **changes[rank]))
        for trainer in self.trainers:
            trainer.next(Ready)

    def run(self, segment: int, steps: int = 4) -> list[SegmentDone]:
        beacon = hashlib.sha256(f"beacon {segment}".encode()).hexdigest()
        for trainer in self.trainers:
            trainer.send(RunSegment(segment=segment, beacon=beacon, first_step=segment * steps, steps=steps))
        return [trainer.next(SegmentDone) for trainer in self.trainers]

    def kill(self) -> None:
        for trainer in self.trainers:
            trainer.kill()


@pytest.fixture(scope="session")
def honest_then_forging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Group, list[list[SegmentDone]]]]:
    """Two ranks with unequal shares train three segments of digits; rank 1 forges from segment 2 on."""
    group = Group(tmp_path_factory.mktemp("group"), [40, 24], [{}, {"forge_from_segment": 2}])
    try:
        yield group, [group.run(segment) for segment in range(3)]
        assert [trainer.close() for trainer in group.trainers] == [0, 0]
    finally:
        group.kill()


@pytest.fixture
def group_of() -> type[Group]:
    """For tests that need a group of their own; they kill it."""
    return Group


@pytest.fixture(scope="session")
def digits() -> Path:
    return DIGITS


@pytest.fixture
def trainer_of() -> type[Trainer]:
    """For tests that need one child of their own; they kill it."""
    return Trainer


@pytest.fixture
def start_of() -> Callable[..., Start]:
    return digits_start


@pytest.fixture
def driver(tmp_path: Path, leave_out: Callable[[TalkooError], NoReturn]) -> StandInDriver:
    """STAND-IN for the driver of a machine with GPUs."""
    folder = tmp_path / "driver"
    folder.mkdir()
    try:
        return StandInDriver(folder)
    except NotFound as error:
        leave_out(error)


@pytest.fixture
def own_settings(tmp_path: Path) -> AgentSettings:
    """Nobody listens at these places."""
    return AgentSettings(
        federation="f", organization="south", name="south-1", listen="127.0.0.1:1", state_dir=str(tmp_path),
        certificate="c", private_key="k", trust_bundle="t", ledger="l", scheduler="s", blobs="b", account_key="a",
        price_utlk_per_gflop=1, request_price_utlk=1, stake_utlk=20,
    )  # fmt: skip
