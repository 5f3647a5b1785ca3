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
LONGEST_S = 0.6


def measure(device: torch.device, processor: str, duty: float) -> Measured:
    """Operations per second over about half a second of wall clock, rest included. Precision: float32."""
    make_deterministic()
    throttle = Throttle(duty, device.type)
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(SIZE, SIZE, generator=generator).to(device)
    right = torch.randn(SIZE, SIZE, generator=generator).to(device)
    for _ in range(2):  # first calls load kernels
        left @ right
    _finish(device)
    products, began = 0, time.perf_counter()
    while products < LEAST_PRODUCTS or time.perf_counter() - began < LONGEST_S:
        throttle.begin()
        left @ right
        _finish(device)
        throttle.rest()
        products += 1
    speed = int(products * FLOPS / (time.perf_counter() - began))
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return Measured(speed_flops=speed, hardware_class=hardware_class(device, processor), memory_bytes=memory, duty=duty)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
