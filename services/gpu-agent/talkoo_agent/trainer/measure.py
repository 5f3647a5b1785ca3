"""How fast this node is: a fixed small matrix product, forward and backward shaped, under the node's own duty."""

from __future__ import annotations

import time

import torch

from talkoo_agent.trainer.throttle import Throttle
from talkoo_agent.trainer_messages import Measured
from talkoo_math.determinism import hardware_class, make_deterministic

SIZE = 384
FLOPS = 2 * SIZE**3
LEAST_PRODUCTS = 6
WORK_S = 0.4


def measure(device: torch.device, processor: str, duty: float) -> Measured:
    """Operations per second of this node's own share, float32, over about half a second of work.

    On a CPU the work's processor time counts, divided by the duty: the figure is what the node has to itself, and
    does not drop because others use the machine meanwhile. On a GPU the wall clock counts.
    """
    make_deterministic()
    Throttle(duty, device.type)  # refuses a duty that cannot be kept
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(SIZE, SIZE, generator=generator).to(device)
    right = torch.randn(SIZE, SIZE, generator=generator).to(device)
    for _ in range(2):  # first calls load kernels
        left @ right
    _finish(device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    products, began = 0, clock()
    while products < LEAST_PRODUCTS or clock() - began < WORK_S:
        left @ right
        _finish(device)
        products += 1
    speed = int(products * FLOPS * duty / (clock() - began))
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return Measured(speed_flops=speed, hardware_class=hardware_class(device, processor), memory_bytes=memory, duty=duty)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
