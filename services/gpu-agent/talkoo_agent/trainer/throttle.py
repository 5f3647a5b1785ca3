"""Run at a part of the machine's speed, honestly: rest in proportion to the processor time that work took.

With `duty` d, after t seconds of processor time the process rests t · (1/d - 1) seconds. This is how several nodes of
clearly different speed live on one small machine, and how an owner lends only a part of one. What a node measures of
itself runs under the same rule, so the speed it offers is the speed it has.
"""

from __future__ import annotations

import time

from talkoo_core.errors import InvalidInput

LEAST_DUTY = 0.01


class Throttle:
    def __init__(self, duty: float, device_type: str = "cpu") -> None:
        if not LEAST_DUTY <= duty <= 1.0:
            raise InvalidInput(f"duty is {duty}; it must be from {LEAST_DUTY} to 1", code="bad_duty")
        if duty < 1.0 and device_type != "cpu":
            raise InvalidInput("duty below 1 works by processor time and so only on CPU nodes", code="bad_duty")
        self._rest_per_second = 1.0 / duty - 1.0
        self._mark = time.process_time()

    def begin(self) -> None:
        self._mark = time.process_time()

    def rest(self) -> None:
        """Rest for the work since `begin`."""
        pause = (time.process_time() - self._mark) * self._rest_per_second
        if pause > 0:
            time.sleep(pause)
        self._mark = time.process_time()
