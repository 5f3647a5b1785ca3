"""Smaller parts of the agent: devices, settings, the journal, interfaces, the line protocol's bounds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from talkoo_agent.devices import CPU_CORE_POWER_MW, EnergyMeter, find_device
from talkoo_agent.interfaces import interface_environment
from talkoo_agent.journal import Journal
from talkoo_agent.processor import processor_name
from talkoo_agent.settings import AgentSettings, check_settings
from talkoo_agent.trainer_messages import ChildFailed, Step, from_trainer, line_of
from talkoo_agent.wire import config_of, failure_of_task

from talkoo_core.errors import InvalidInput


def test_a_machine_without_a_gpu_says_what_it_is() -> None:
    device = find_device((), declared_memory_bytes=1 << 28)
    assert (device.memory_bytes, device.power_mw, device.power_source) == (1 << 28, CPU_CORE_POWER_MW, "declared")
    assert device.backend == "gloo"
    meter = EnergyMeter(device)
    meter.begin()
    assert meter.end_mj(2.0) == 30_000  # two seconds of a core at 15 W


def test_a_processor_is_named_with_its_model_numbers(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\ncpu family : 25\nmodel : 1\nmodel name : AMD EPYC\nstepping : 1\n\nprocessor : 1\n")
    assert processor_name(info) == "AMD EPYC 25-1-1"
    assert processor_name(tmp_path / "none")


@pytest.mark.parametrize("change", [{"duty": 0.0}, {"duty": 1.5}, {"slots": -1}, {"memory_bytes": -1}])
def test_settings_that_cannot_work_are_refused(own_settings: AgentSettings, change: dict[str, float]) -> None:
    check_settings(own_settings)
    with pytest.raises(InvalidInput):
        check_settings(msgspec.structs.replace(own_settings, **change))


async def test_a_journal_is_bounded_and_its_readers_end_when_it_closes() -> None:
    journal: Journal[int] = Journal(kept=3)
    for number in range(5):
        journal.write(number)
    assert [entry async for entry in journal.read(follow=False)] == [2, 3, 4]
    assert [entry async for entry in journal.read(follow=False, tail=1)] == [4]
    seen: list[int] = []

    async def follow() -> None:
        async for entry in journal.read(follow=True):
            seen.append(entry)

    reader = asyncio.create_task(follow())
    await asyncio.sleep(0)
    journal.write(5)
    journal.close()
    await reader
    assert seen == [2, 3, 4, 5]


def test_gradients_use_the_interface_that_has_the_address() -> None:
    assert interface_environment("127.0.0.1")["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert interface_environment("192.0.2.1") == {}


def test_messages_survive_the_line_and_strangers_are_refused() -> None:
    message = ChildFailed(kind="loss_nan", message="line\nbreak", step=3)
    assert from_trainer.decode(line_of(message)) == message
    assert line_of(message).count(b"\n") == 1
    assert isinstance(from_trainer.decode(line_of(Step(segment=0, step=1, loss=0.5, samples_per_second=2.0))), Step)
    with pytest.raises(msgspec.ValidationError):
        from_trainer.decode(b'{"type":"start"}')


def test_the_ledger_hears_the_tasks_own_failures_and_everything_else_as_a_lost_node() -> None:
    kinds = {
        kind: failure_of_task("t", 1, kind, "x" * 3000).kind for kind in ("loss_nan", "bad_optimizer", "disk_full")
    }
    assert kinds == {"loss_nan": "loss_nan", "bad_optimizer": "bad_program", "disk_full": "node_lost"}
    assert len(failure_of_task("t", 1, "loss_nan", "ä" * 3000).message.encode()) <= 1024
    with pytest.raises(InvalidInput, match="JSON object"):
        config_of("[1]")
