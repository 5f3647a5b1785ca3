"""What the agent reads of GPUs, with pynvml's real bindings. The library below them is a STAND-IN: no GPU is here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from talkoo_sim.stand_in_nvml import H100, StandInDriver

READER = Path(__file__).parent / "nvml_reader.py"


class Reader:
    """A process with the agent's code and the stand-in driver."""

    def __init__(self, driver: StandInDriver) -> None:
        self.driver = driver
        self.process: subprocess.Popen[str] | None = None

    def read(self) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, str(READER)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.process = subprocess.Popen(command, env=self.driver.environment, text=True, **pipes)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def card(self, *cards: dict[str, object]) -> dict[str, Any]:
        """What is read of the first of these cards."""
        self.driver.cards(*cards)
        return dict(self.read()["cards"][0])

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate(timeout=30)
            assert self.process.returncode == 0


@pytest.fixture
def reader(driver: StandInDriver) -> Iterator[Reader]:
    made = Reader(driver)
    try:
        yield made
    finally:
        made.close()


def test_a_card_is_described_in_the_words_of_nvidias_dra_driver(reader: Reader) -> None:
    gpu = reader.card(H100)["gpu"]
    assert (gpu["product"], gpu["brand"], gpu["architecture"]) == ("NVIDIA H100 80GB HBM3", "Nvidia", "Hopper")
    assert (gpu["uuid"], gpu["pcie_bus_id"]) == (H100["uuid"], "0000:64:00.0")
    assert (gpu["compute_capability"], gpu["driver_version"], gpu["cuda_version"]) == ("9.0", "580.105.08", "13.0")
    assert gpu["memory_bytes"] == H100["memory_total"]
    assert (gpu["mig_capable"], gpu["mig_enabled"], gpu["mig"]) == (True, False, [])


def test_a_reading_has_every_measure_in_its_unit(reader: Reader) -> None:
    card = reader.card(H100)
    assert (card["utilization"], card["memory_utilization"]) == (0.87, 0.41)
    assert (card["memory_used_bytes"], card["temperature_c"]) == (1 << 30, 61)
    assert (card["power_mw"], card["power_limit_mw"], card["energy_mj"]) == (512300, 700000, 5000000)
    assert (card["ecc_corrected"], card["ecc_uncorrected"]) == (3, 0)
    assert (card["pcie_sent_bps"], card["pcie_received_bps"], card["pcie_replays"]) == (2048000, 3072000, 1)
    assert card["faults"] == []


def test_what_a_card_does_not_tell_is_unknown_and_not_zero(reader: Reader) -> None:
    """A consumer card has neither ECC nor MIG; a virtual one hides its power."""
    silent = ("ecc_corrected", "ecc_uncorrected", "mig_mode", "energy_mj", "power_mw", "pcie_replays")
    card = reader.card({name: value for name, value in H100.items() if name not in silent})
    assert [card[name] for name in silent if name != "mig_mode"] == [None] * 5
    assert card["gpu"]["mig_capable"] is False
    assert card["temperature_c"] == 61


def test_all_cards_are_lent_as_one_device_and_each_has_its_own_counter(reader: Reader) -> None:
    second = H100 | {"uuid": "GPU-2", "energy_mj": 9_000_000, "memory_total": 85_000_000_000}
    reader.driver.cards(H100, second)
    read = reader.read()
    assert [card["gpu"]["uuid"] for card in read["cards"]] == read["lent"] == [H100["uuid"], "GPU-2"]
    assert (read["device"]["kind"], read["device"]["description"]) == ("cuda", "NVIDIA H100 80GB HBM3")
    assert (read["device"]["power_mw"], read["device"]["power_source"]) == (700000, "nvml")
    assert read["device"]["memory_bytes"] == 85_000_000_000
    reader.driver.cards(H100, second | {"energy_mj": 9_007_000})
    assert reader.read()["energy_mj"] == [0, 7_000]


def test_a_part_of_a_card_has_no_counter_and_no_limit_of_its_own(reader: Reader) -> None:
    """Its work is booked by processor time and its part of the card's limit: the counter counts other parts, too."""
    part = {"mig_mode": 1, "mig.0.uuid": "MIG-a", "mig.0.slices": 1, "mig.0.memory_total": 10200547328}
    reader.driver.cards(H100 | part)
    read = reader.read()
    assert read["lent"] == ["MIG-a"]
    assert read["device"]["description"] == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert read["device"]["memory_bytes"] == 10200547328
    share_mw = round(700000 * 10200547328 / int(str(H100["memory_total"])))
    assert (read["device"]["power_mw"], read["device"]["power_source"]) == (share_mw, "declared")
    reader.driver.cards(H100 | part | {"energy_mj": 5_009_000})
    assert reader.read()["energy_mj"] == [2 * share_mw]


def test_a_card_that_does_not_answer_at_the_start_is_left_out(reader: Reader) -> None:
    reader.driver.cards(H100 | {"lost": 1}, H100 | {"uuid": "GPU-2"})
    assert reader.read()["lent"] == ["GPU-2"]


def test_a_node_whose_cards_are_all_lost_at_the_start_is_not_one_without_a_gpu(reader: Reader) -> None:
    reader.driver.cards(H100 | {"lost": 1}, H100 | {"lost": 1})
    code, message = reader.read()["error"]
    assert (code, message) == ("gpu_lost", "no GPU answers (GPU is lost); reset them or restart the node")


def test_without_a_driver_the_machine_is_its_processor(reader: Reader) -> None:
    """The library is there and says that no driver is loaded."""
    read = reader.read()
    assert read["cards"] == []
    assert read["device"]["kind"] == "cpu"


def test_parts_of_a_card_in_mig_mode_are_found_with_their_profiles(reader: Reader) -> None:
    parts = {
        "mig_mode": 1,
        "mig.0.uuid": "MIG-a",
        "mig.0.slices": 1,
        "mig.0.memory_total": 10200547328,
        "mig.2.uuid": "MIG-b",
        "mig.2.slices": 3,
        "mig.2.memory_total": 42144366592,
    }
    gpu = reader.card(H100 | parts)["gpu"]
    assert gpu["mig_enabled"] is True
    assert [(one["uuid"], one["profile"]) for one in gpu["mig"]] == [("MIG-a", "1g.10gb"), ("MIG-b", "3g.40gb")]


def test_an_xid_of_the_hardware_is_a_fault_and_one_of_a_program_is_not(reader: Reader) -> None:
    assert reader.card(H100)["xids"] == []
    reader.driver.event(0, 31)
    card = reader.card(H100)
    assert (card["xids"], card["faults"]) == ([31], [])
    reader.driver.event(0, 79)
    card = reader.card(H100)
    assert (card["xids"], card["faults"]) == ([79], ["XID 79"])
    card = reader.card(H100)
    assert (card["xids"], card["faults"]) == ([], ["XID 79"])


def test_memory_errors_count_from_the_start_of_the_agent(reader: Reader) -> None:
    """Old ones may be of a time when the card was another's; new ones excuse a wrong result."""
    assert reader.card(H100 | {"ecc_uncorrected": 2})["faults"] == []
    assert reader.card(H100 | {"ecc_uncorrected": 3})["faults"] == ["uncorrectable memory errors"]


def test_a_card_that_fell_off_the_bus_is_a_fault_and_its_values_unknown(reader: Reader) -> None:
    assert reader.card(H100)["faults"] == []
    reader.driver.cards(H100 | {"lost": 1})
    read = reader.read()
    card = read["cards"][0]
    assert card["faults"] == ["the card has fallen off the bus"]
    assert (card["temperature_c"], card["power_mw"]) == (None, None)
    assert card["gpu"]["uuid"] == H100["uuid"]
