"""docs/scheduling.md holds every reason and every setting."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from talkoo_scheduler.policy import REASONS
from talkoo_scheduler.settings import SchedulerSettings

from talkoo_runtime.service_settings import ServiceSettings

PAGE = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_is_explained(code: str) -> None:
    assert f"| `{code}` |" in PAGE


def test_every_setting_is_named() -> None:
    common = {field.name for field in msgspec.structs.fields(ServiceSettings)}
    own = {field.name for field in msgspec.structs.fields(SchedulerSettings)} - common
    assert own
    assert all(f"`{name}`" in PAGE for name in own)
