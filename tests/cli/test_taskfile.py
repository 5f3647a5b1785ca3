"""A task file is read strictly: each mistake is one line that names the file, the line and the cure."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from talkoo.taskfile import TaskFile, read_task_file, read_task_mapping
from talkoo_core.errors import InvalidInput, NotFound

GOOD = """\
apiVersion: talkoo.dev/v1alpha1
kind: TrainingTask
metadata: {name: digits}
spec:
  mode: ddp
  program: {path: ., module: digits, config: {hidden: 128}}
  data: {path: digits.npz}
  optimizer: {name: adam, lr: 0.001, eps: 1e-8}
  globalBatch: 256
  steps: 300
  stepsPerSegment: 30
  seed: 7
  nodes: {min: 3, max: 4, memory: 512Mi}
  budget: 50 TLK
  price: 0.2 TLK
  auditRate: 0.3
  model: {name: digits, licence: CC-BY-4.0, requestPrice: 0.01 TLK, parent: ""}
"""


def read(tmp_path: Path, text: str) -> TaskFile:
    path = tmp_path / "task.yaml"
    path.write_text(text, encoding="utf-8")
    return read_task_file(path)


def test_a_good_file_is_read_in_the_ledgers_units(tmp_path: Path) -> None:
    task = read(tmp_path, GOOD)
    assert (task.name, task.module, task.mode) == ("digits", "digits", "ddp")
    assert task.budget_utlk == 50_000_000
    assert task.price_utlk_per_gflop == 200_000
    assert task.request_price_utlk == 10_000
    assert task.audit_rate_ppm == 300_000
    assert task.memory_bytes == 512 << 20
    assert task.config_json == '{"hidden":128}'
    assert json.loads(task.optimizer_options_json) == {"eps": "1e-8", "lr": "0.001"}
    assert (task.min_nodes, task.max_nodes) == (3, 4)


def test_the_example_is_in_order() -> None:
    example = Path(__file__).parents[2] / "examples" / "digits" / "task.yaml"
    assert read_task_file(example).name == "digits"


def test_a_dict_means_the_same_as_the_file(tmp_path: Path) -> None:
    assert read_task_mapping(yaml.safe_load(GOOD)) == read(tmp_path, GOOD)


BAD = [
    ("stepsPerSegment", "stepPerSegment", r"task.yaml:11: spec.stepPerSegment is not a field; did you mean stepsPer"),
    ("licence: CC", "license: CC", r"task.yaml:17: spec.model.license is not a field; did you mean licence"),
    ("seed: 7", "colour: red", r"task.yaml:12: spec.colour is not a field; the fields there are mode, program"),
    ("steps: 300", "steps: many", r"task.yaml:10: spec.steps must be a whole number, not 'many'"),
    ("steps: 300", "steps: 3.5", r"spec.steps must be a whole number, not 3.5"),
    ("steps: 300", "steps: true", r"spec.steps must be a whole number, not True"),
    ("steps: 300", "steps: 0", r"spec.steps is 0; it must be from 1"),
    ("steps: 300\n", "\n", r"spec.steps is missing; add it"),
    ("budget: 50 TLK", "budget: a lot", r"task.yaml:14: spec.budget is wrong: 'a lot' is not an amount"),
    ("budget: 50 TLK", "budget: [50]", r"spec.budget must be an amount like 1.5 TLK"),
    ("memory: 512Mi", "memory: 512MB", r"spec.nodes.memory must be a size like 512Mi or 2Gi, not '512MB'"),
    ("max: 4", "max: 2", r"spec.nodes.max is 2, less than nodes.min \(3\)"),
    ("globalBatch: 256", "globalBatch: 2", r"spec.globalBatch is 2: fewer samples than nodes.max"),
    ("stepsPerSegment: 30", "stepsPerSegment: 301", r"spec.stepsPerSegment is 301, more than the task's 300 steps"),
    ("auditRate: 0.3", "auditRate: 30", r"spec.auditRate must be a share from 0 to 1 like 0.3, not 30"),
    ("auditRate: 0.3", "auditRate: often", r"spec.auditRate must be a share"),
    ("name: adam", "name: adagrad", r"spec.optimizer.name must be sgd or adam or adamw, not 'adagrad'"),
    ("lr: 0.001", "lr: fast", r"spec.optimizer.lr must be a number, not 'fast'"),
    ("mode: ddp", "mode: fsdp", r"spec.mode must be ddp, not 'fsdp'"),
    ("kind: TrainingTask", "kind: Job", r"task.yaml:2: kind must be TrainingTask, not 'Job'"),
    ("v1alpha1", "v9", r"task.yaml:1: apiVersion must be talkoo.dev/v1alpha1"),
    ("metadata: {name: digits}", "metadata: {name: My Task}", r"metadata.name is wrong: the name 'My Task' is not"),
    ("metadata: {name: digits}", "metadata: 5", r"metadata must be a mapping of fields, not 5"),
    ("module: digits,", "module: ../digits,", r"spec.program.module must be the stem of a Python file"),
    ("path: digits.npz", "path: digits.npz, sha256: abc", r"spec.data.sha256 must be 64 hex digits"),
    ("seed: 7", "steps: 7", r"task.yaml:12: spec.steps is written twice, first in line 10; keep one"),
    ("seed: 7", "seed: [7", r"task.yaml:\d+: not YAML"),
    ("seed: 7", "seed: !!python/object:os.system 7", r"task.yaml:12: not YAML"),
    ("{hidden: 128}", "{hidden: .nan}", r"spec.program.config must hold only JSON values"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_a_mistake_is_one_line_that_says_the_cure(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(InvalidInput, match=message) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert "\n" not in caught.value.message


def test_what_is_not_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        read_task_file(tmp_path / "no.yaml")
    with pytest.raises(InvalidInput, match="is a folder"):
        read_task_file(tmp_path)
    with pytest.raises(InvalidInput, match="the file is empty"):
        read(tmp_path, "")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="not a text file"):
        read_task_file(tmp_path / "binary")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(yaml.safe_load(GOOD)["spec"])), values)
def test_any_value_in_any_field_is_read_or_refused_with_one_line(field: str, value: Any) -> None:
    document = copy.deepcopy(yaml.safe_load(GOOD))
    document["spec"][field] = value
    try:
        task = read_task_mapping(document)
    except InvalidInput as error:
        message = error.message
    else:
        assert task.steps >= task.steps_per_segment
        assert task.max_nodes >= task.min_nodes
        return
    assert any(name in message for name in (f"spec.{field}", "spec.globalBatch", "spec.stepsPerSegment"))
