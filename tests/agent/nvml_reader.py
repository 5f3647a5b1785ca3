"""A process of its own with the agent's GpuWatch: for each line on stdin, one reading as JSON on stdout."""

import dataclasses
import json
import sys

from talkoo_agent.devices import find_device
from talkoo_agent.nvml import GpuWatch

from talkoo_core.errors import Failed

watch = GpuWatch()
watch.open()
for _ in sys.stdin:
    cards = [dataclasses.asdict(reading) for reading in watch.read()]
    try:
        device: object = dataclasses.asdict(find_device())
    except Failed as error:
        device = error.message
    print(json.dumps({"cards": cards, "device": device}), flush=True)
watch.close()
