"""Proto messages as JSON: nothing lost, and always as the OpenAPI schema says."""

from __future__ import annotations

import json

import pytest
from google.protobuf.message import Message
from talkoo_api.agent.v1 import agent_pb2
from talkoo_api.ledger.v1 import service_pb2, state_pb2, tx_pb2
from talkoo_gateway.operations import OPERATIONS
from talkoo_gateway.schemas import checked, model_of

from talkoo_runtime.plain import plain


@pytest.mark.parametrize("kind", [state_pb2.Task, state_pb2.Segment, service_pb2.TxResult, agent_pb2.ProgressUpdate])
def test_an_empty_message_has_every_field_and_fits_its_schema(kind: type[Message]) -> None:
    value = plain(kind())
    assert list(value) == [field.name for field in kind.DESCRIPTOR.fields]
    assert checked(kind()).model_dump() == value


def test_numbers_stay_exact_and_floats_are_json() -> None:
    assert plain(tx_pb2.Transfer(amount_utlk=2**63 - 1))["amount_utlk"] == 2**63 - 1
    update = agent_pb2.ProgressUpdate(loss=float("nan"), samples_per_second=float("inf"))
    assert json.loads(json.dumps(plain(update), allow_nan=False))["loss"] is None
    checked(update)


def test_enums_are_words_and_an_unknown_number_stays_visible() -> None:
    assert plain(state_pb2.Task(phase=state_pb2.TASK_PHASE_RUNNING))["phase"] == "running"
    assert plain(state_pb2.Segment(phase=state_pb2.SEGMENT_PHASE_ACCEPTED))["phase"] == "accepted"
    assert plain(state_pb2.Task(phase=99))["phase"] == "99"  # type: ignore[arg-type]


def test_a_message_that_is_not_set_is_none() -> None:
    assert plain(state_pb2.Task())["spec"] is None
    assert plain(state_pb2.Task(spec=tx_pb2.TaskSpec(name="x")))["spec"]["name"] == "x"


def test_every_json_operation_has_a_schema_but_the_genesis_file() -> None:
    without = {o.path for o in OPERATIONS if o.gives is None and o.media == "application/json"}
    assert without == {"/v1/genesis"}
    assert model_of(state_pb2.Task.DESCRIPTOR) is model_of(state_pb2.Task.DESCRIPTOR)
