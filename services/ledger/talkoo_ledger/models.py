"""Model versions: what a completed task registers, and where a name's newest version stands."""

from __future__ import annotations

from talkoo_core.errors import NotFound
from talkoo_ledger.context import Context
from talkoo_ledger.messages import Verdict
from talkoo_ledger.records import ModelVersion, Task
from talkoo_ledger.state import State, model_key


def model_by_version(state: State, version: str) -> ModelVersion:
    """A version by its text `<model>@<number>`. Raises NotFound (code `unknown_model`)."""
    model, _, number = version.partition("@")
    found = state.models.get(model_key(model, int(number))) if number.isascii() and number.isdigit() else None
    if found is None or found.version != version:
        raise NotFound(f"there is no model version {version!r}; versions look like digits@1", code="unknown_model")
    return found


def head_of(state: State, model: str) -> ModelVersion | None:
    """The newest version: numbers have no gaps, so the end is found by doubling and halving."""
    present, absent = 0, 1
    while state.models.get(model_key(model, absent)) is not None:
        present, absent = absent, absent * 2
    while absent - present > 1:
        middle = (present + absent) // 2
        if state.models.get(model_key(model, middle)) is None:
            absent = middle
        else:
            present = middle
    return state.models.get(model_key(model, present)) if present else None


def register_model(
    context: Context, task: Task, params_sha256: str, outcome: Verdict | None, contributors: tuple[str, ...]
) -> str:
    """Register the next version of the task's model. Returns its text."""
    head = head_of(context.state, task.spec.model_name)
    number = head.number + 1 if head else 1
    spec = task.spec
    version = f"{spec.model_name}@{number}"
    model = ModelVersion(
        version=version,
        model=spec.model_name,
        number=number,
        owner=task.owner,
        task_id=task.id,
        params_sha256=params_sha256,
        code_sha256=spec.code.sha256,
        data_sha256=spec.data.sha256,
        parent_version=spec.parent_version,
        module=spec.module,
        config_json=spec.config_json,
        heldout_correct=outcome.heldout_correct if outcome else 0,
        heldout_total=outcome.heldout_total if outcome else 0,
        licence=spec.licence,
        height=context.height,
        request_price_utlk=spec.request_price_utlk,
        contributors=contributors,
    )
    context.state.models.put(model_key(spec.model_name, number), model)
    context.emit(
        "model_registered",
        version,
        task=task.id,
        params=params_sha256,
        correct=model.heldout_correct,
        total=model.heldout_total,
    )
    return version
