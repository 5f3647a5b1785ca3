"""From a task file to what is sent: packing is deterministic, counting runs in a child, prices are the ledger's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_ledger.economy import required_escrow

from talkoo.submission import check_means, least_escrow_utlk, prepare
from talkoo.taskfile import TaskFile, read_task_file
from talkoo_core.errors import Failed, InsufficientFunds, InvalidInput, TalkooError

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, tmp_path / "digits"))


async def one(_task: TaskFile, _code: bytes, _data: Path) -> int:
    """An operation for each sample, without torch."""
    return 1


def read(folder: Path) -> TaskFile:
    return read_task_file(folder / "task.yaml")


async def test_the_same_folder_gives_the_same_program_without_its_data(example: Path) -> None:
    first = await prepare(read(example), example, one)
    (example / "__pycache__").mkdir(exist_ok=True)
    (example / "__pycache__" / "x.pyc").write_bytes(b"cache")
    (example / "digits.py").touch()
    second = await prepare(read(example), example, one)
    assert first.code == second.code
    assert first.spec.data.size_bytes == (example / "digits.npz").stat().st_size
    assert len(first.code) < first.spec.data.size_bytes


async def test_operations_are_counted_by_running_the_packed_module_once(example: Path) -> None:
    pytest.importorskip("torch")
    prepared = await prepare(read(example), example)
    assert prepared.spec.flops_per_sample > 1000


async def test_a_module_that_raises_is_one_line_with_its_place(example: Path) -> None:
    pytest.importorskip("torch")
    module = example / "digits.py"
    module.write_text(
        module.read_text().replace("def loss(", "def loss(*_):\n    raise ValueError('no')\n\n\ndef _loss(")
    )
    with pytest.raises(TalkooError, match=r"raised ValueError: no \(digits.py, line \d+\)") as caught:
        await prepare(read(example), example)
    assert isinstance(caught.value, Failed)
    assert "\n" not in caught.value.message


async def test_a_data_file_must_have_a_plain_name(example: Path) -> None:
    (example / "my data.npz").write_bytes(b"x")
    text = (example / "task.yaml").read_text().replace("path: digits.npz", "path: my data.npz")
    (example / "task.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=r"'my data\.npz' may hold only letters"):
        await prepare(read(example), example, one)


@given(st.integers(1, 10**12), st.integers(0, 10**9), st.integers(0, 10**6))
def test_the_least_budget_is_the_one_that_the_ledger_asks_for(flops: int, price: int, validation_ppm: int) -> None:
    spec = tx_pb2.TaskSpec(steps=3, global_batch=5, flops_per_sample=flops, price_utlk_per_gflop=price)
    params = state_pb2.Params(validation_ppm=validation_ppm)
    assert least_escrow_utlk(spec, params) == required_escrow(15 * flops, price, validation_ppm)


async def test_what_is_missing_is_said_to_the_last_unit(example: Path) -> None:
    prepared = await prepare(read(example), example, one)
    params = state_pb2.Params(min_fee_utlk=1000)
    check_means(prepared, prepared.budget_utlk + 1000, "alice", params)
    with pytest.raises(InsufficientFunds, match=r"alice holds [0-9.]+999 TLK .*: 0.000001 TLK are missing"):
        check_means(prepared, prepared.budget_utlk + 999, "alice", params)


async def test_a_dataset_of_a_cluster_is_asked_for_as_a_file_here(example: Path) -> None:
    text = (example / "task.yaml").read_text().replace("path: digits.npz", "dataset: digits")
    (example / "task.yaml").write_text(text)
    assert read(example).data_set == "digits"
    with pytest.raises(InvalidInput, match=r"spec\.data\.path is missing: a Dataset is found on a cluster only"):
        await prepare(read(example), example, one)
