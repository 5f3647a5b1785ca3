"""The child as a real process: honest, forged, broken, stopped; one process for all of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from talkoo_api.ledger.v1 import state_pb2
from talkoo_validator.orders import Failed, Ready, Recompute, Recomputed, Stop, from_child, line_of, order_of

from talkoo_runtime.bundle import unpack

DEADLINE_S = 60


class Child:
    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "talkoo_validator.recompute", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert isinstance(self.read(), Ready)

    def send(self, message: msgspec.Struct) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line_of(message))
        self.process.stdin.flush()

    def read(self) -> Ready | Recomputed | Failed:
        assert self.process.stdout is not None
        return from_child.decode(self.process.stdout.readline())

    def ask(self, order: Recompute) -> Recomputed | Failed:
        self.send(order)
        answer = self.read()
        assert not isinstance(answer, Ready)
        return answer

    def close(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(DEADLINE_S)
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    child = Child()
    yield child
    assert child.close() == 0


@pytest.fixture
def order_for(gang: Any, tmp_path: Path) -> Any:
    """Orders over real files, as the service makes them."""

    def order(segment: state_pb2.Segment) -> Recompute:
        code = tmp_path / "program"
        if not code.exists():
            unpack(gang.blobs[gang.spec.code.sha256], code)
        paths = {sha256: gang.path(sha256) for sha256 in gang.blobs}
        return order_of(gang.spec, segment, code, paths[gang.spec.data.sha256], paths)

    return order


def test_honest_segments_have_equal_bits_and_the_last_measures_the_held_out_split(
    child: Child, gang: Any, order_for: Any
) -> None:
    first, last = (child.ask(order_for(segment)) for segment in gang.segments)
    assert isinstance(first, Recomputed)
    assert isinstance(last, Recomputed)
    for answer, segment in ((first, gang.segments[0]), (last, gang.segments[1])):
        assert all(finding.honest for finding in answer.findings), answer
        assert answer.disputed == ""
        assert answer.params_sha256 == segment.commitments[0].segment.params_sha256
        assert answer.steps_checked == 3
    assert (first.heldout_total, last.heldout_total) == (0, 10)
    assert 0 <= last.heldout_correct <= 10


def test_a_forged_loss_blames_that_rank_at_that_step(child: Child, gang: Any, order_for: Any, kit: ModuleType) -> None:
    answer = child.ask(order_for(kit.with_forged_loss(gang, segment=1, rank=1, step=4)))
    assert isinstance(answer, Recomputed)
    assert [(f.honest, f.first_bad_step) for f in answer.findings] == [(True, 0), (False, 4)]
    assert "claims a loss of 0.125" in answer.findings[1].reason
    assert answer.heldout_total == 0


def test_a_transcript_that_is_none_blames_its_rank(child: Child, gang: Any, order_for: Any, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"not a transcript")
    order = order_for(gang.segments[0])
    claims = [order.claims[0], msgspec.structs.replace(order.claims[1], transcript_path=str(tmp_path / "noise"))]
    answer = child.ask(msgspec.structs.replace(order, claims=claims))
    assert isinstance(answer, Recomputed)
    assert [f.honest for f in answer.findings] == [True, False]


def test_work_that_the_program_does_not_need_is_disputed(child: Child, gang: Any, order_for: Any) -> None:
    answer = child.ask(msgspec.structs.replace(order_for(gang.segments[0]), flops_per_sample=gang.flops * 10))
    assert isinstance(answer, Recomputed)
    assert "work that is not there is not paid" in answer.disputed


def test_a_loss_that_is_nan_and_a_program_that_raises_fail_by_kind_and_the_child_lives_on(
    child: Child, gang: Any, order_for: Any, tmp_path: Path
) -> None:
    honest = order_for(gang.segments[0])
    source = (Path(honest.code_dir) / "tiny.py").read_text()
    for name, body, kind in [
        ("nan", "return model(batch[0]).sum() * float('nan')", "loss_nan"),
        ("raises", "raise KeyError('no such column')", "model_raised"),
        ("dies", "import os; os.abort()", "died"),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        head, _, _ = source.partition("def loss")
        (folder / "tiny_size.py").write_text("CLASSES = 3\n")
        rest = (
            "def loss(model, batch):\n    "
            + body
            + "\ndef correct(m, b):\n    return 0\ndef predict(m, i):\n    return []\n"
        )
        (folder / "tiny.py").write_text(head + rest)
        answer = child.ask(msgspec.structs.replace(honest, code_dir=str(folder)))
        assert isinstance(answer, Failed)
        assert answer.kind == kind, answer
    assert isinstance(child.ask(honest), Recomputed)


def test_a_neighbour_module_of_one_task_does_not_reach_the_next(
    child: Child, gang: Any, order_for: Any, tmp_path: Path
) -> None:
    honest = order_for(gang.segments[0])
    other = tmp_path / "other"
    other.mkdir()
    (other / "tiny.py").write_text((Path(honest.code_dir) / "tiny.py").read_text())
    (other / "tiny_size.py").write_text("CLASSES = 9\n")
    different = child.ask(msgspec.structs.replace(honest, code_dir=str(other)))
    assert isinstance(different, Recomputed)
    assert not all(finding.honest for finding in different.findings)
    again = child.ask(honest)
    assert isinstance(again, Recomputed)
    assert all(finding.honest for finding in again.findings)


def test_stop_ends_a_segment_that_hangs_and_the_child_takes_the_next(
    child: Child, gang: Any, order_for: Any, tmp_path: Path
) -> None:
    honest = order_for(gang.segments[0])
    hanging = tmp_path / "hanging"
    hanging.mkdir()
    (hanging / "tiny.py").write_text("import select\nselect.select([], [], [])\n")
    child.send(msgspec.structs.replace(honest, code_dir=str(hanging)))
    child.send(Stop())
    answer = child.read()
    assert isinstance(answer, Failed)
    assert answer.kind == "stopped"
    assert isinstance(child.ask(honest), Recomputed)
