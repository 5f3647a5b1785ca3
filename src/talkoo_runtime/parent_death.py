"""Children that end with their parent, whatever ended it."""

from __future__ import annotations

import os
import signal
import sys

DIE_WITH_PARENT = "TALKOO_DIE_WITH_PARENT"
PR_SET_PDEATHSIG = 1


def bound_to_us() -> dict[str, str]:
    """Variables for a child that shall end with this process."""
    return {DIE_WITH_PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, so that a killed `talkoo up` leaves nothing running.

    The variable holds the parent's process id: who has another one now was orphaned before it could ask.
    """
    parent = os.environ.pop(DIE_WITH_PARENT, "")  # it is not for our own children
    if not parent or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)
