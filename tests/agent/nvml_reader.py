"""A process of its own with the agent's GpuWatch: for each line on stdin, one reading as JSON on stdout."""

import dataclasses
import json
import sys

from talkoo_agent.devices import EnergyMeter, find_device
from talkoo_agent.lending import lent_cards
from talkoo_agent.nvml import GpuWatch

from talkoo_core.errors import Failed

watch = GpuWatch()
try:
    watch.open()
except Failed as error:
    print(json.dumps({"error": [error.code, error.message]}), flush=True)
    sys.exit()
lent = lent_cards(watch.gpus, None)
device = find_device(lent)
meters = [EnergyMeter(device, card.uuid) for card in lent]
for meter in meters:
    meter.begin()
for _ in sys.stdin:
    read = {
        "cards": [dataclasses.asdict(reading) for reading in watch.read()],
        "device": dataclasses.asdict(device),
        "lent": [card.uuid for card in lent],
        "energy_mj": [meter.end_mj(cpu_seconds=2.0) for meter in meters],
    }
    print(json.dumps(read), flush=True)
watch.close()
