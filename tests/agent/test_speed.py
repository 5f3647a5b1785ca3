"""A node's speed: one measurement for all nodes of a machine, scaled by duty, and when it is measured again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from talkoo_agent import speed
from talkoo_agent.devices import Device
from talkoo_agent.trainer_messages import Measured

from talkoo_core.errors import InvalidInput

DEVICE = Device(kind="cpu", description="a core", memory_bytes=1 << 30, power_mw=1, power_source="declared")


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Counts what is measured; the figure comes from the test instead of from torch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done: list[int] = []

    async def measure(card: str) -> Measured:
        assert card == ""
        done.append(1)
        await asyncio.sleep(0)  # lets the others see the lock taken
        return Measured(speed_flops=1_000_000, hardware_class="cpu/a core", memory_bytes=0, duty=1.0)

    monkeypatch.setattr(speed, "_measure", measure)
    return done


async def test_nodes_that_start_together_measure_once_and_differ_by_their_duty(
    measurements: list[int], tmp_path: Path
) -> None:
    duties = (1.0, 0.5, 0.25)
    found = await asyncio.gather(*(speed.speed_of(DEVICE, duty, tmp_path) for duty in duties))
    assert [(one.speed_flops, one.duty) for one in found] == [(1_000_000, 1.0), (500_000, 0.5), (250_000, 0.25)]
    assert len(measurements) == 1
    assert (await speed.speed_of(DEVICE, 1.0, tmp_path)).speed_flops == 1_000_000
    assert len(measurements) == 1


async def test_another_device_an_old_figure_or_a_broken_file_is_measured_again(
    measurements: list[int], tmp_path: Path
) -> None:
    await speed.speed_of(DEVICE, 1.0, tmp_path)
    (file,) = (tmp_path / "cache" / "talkoo").glob("*.json")
    known = json.loads(file.read_bytes())
    file.write_text(json.dumps(known | {"measured_at_s": known["measured_at_s"] - speed.STALE_S - 1}))
    await speed.speed_of(DEVICE, 1.0, tmp_path)
    file.write_text("{")
    await speed.speed_of(DEVICE, 1.0, tmp_path)
    other = Device(kind="cpu", description="another", memory_bytes=1, power_mw=1, power_source="declared")
    await speed.speed_of(other, 1.0, tmp_path)
    assert len(measurements) == 4


async def test_a_service_without_a_cache_folder_keeps_the_figure_with_its_state(
    measurements: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    await speed.speed_of(DEVICE, 1.0, tmp_path)
    assert list(tmp_path.glob("speed-*.json"))


async def test_a_duty_that_a_card_cannot_keep_is_refused(measurements: list[int], tmp_path: Path) -> None:
    card = Device(kind="cuda", description="a card", memory_bytes=1, power_mw=1, power_source="nvml")
    with pytest.raises(InvalidInput, match="only on CPU nodes"):
        await speed.speed_of(card, 0.5, tmp_path)
    assert not measurements
