"""The real operator on a machine whose clock is wrong: `python -m talkoo_sim.skewed_operator SECONDS --settings FILE`.

Only what Python asks for the time of day is wrong; clocks that measure how long something takes are as they are. gRPC
turns a timeout into a time of day in Python and compares it with the machine's clock, which is right here: on a machine
that is wrong as a whole both are wrong alike, so for that sum it gets the right time.
"""

from __future__ import annotations

import runpy
import sys
import time
from types import SimpleNamespace

from grpc.aio import _utils as grpc_timeouts


def main() -> None:
    ahead_s = float(sys.argv.pop(1))
    right = time.time
    vars(grpc_timeouts)["time"] = SimpleNamespace(time=right)
    time.time = lambda: right() + ahead_s
    runpy.run_module("talkoo_operator", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
