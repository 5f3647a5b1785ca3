"""The real operator on a machine whose clock is wrong: `python -m talkoo_sim.skewed_operator SECONDS --settings FILE`.

Only what Python asks for the time of day is wrong; clocks that measure how long something takes are as they are.
"""

from __future__ import annotations

import runpy
import sys
import time


def main() -> None:
    ahead_s = float(sys.argv.pop(1))
    right = time.time
    time.time = lambda: right() + ahead_s
    runpy.run_module("talkoo_operator", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
