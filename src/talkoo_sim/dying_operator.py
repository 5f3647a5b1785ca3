"""The real operator, which is killed (SIGKILL) at a point on the way of a transaction to the ledger.

`python -m talkoo_sim.dying_operator POINT --settings FILE` runs `python -m talkoo_operator` unchanged but for that:

    before-record   signed, and not yet written into the object
    after-record    written into the object, and not yet sent
    after-send      sent; nobody waited for what became of it
    after-final     final on the ledger; its task's id is not yet written into the object
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

from talkoo_runtime.ledger_client import LedgerClient

POINTS = ("before-record", "after-record", "after-send", "after-final")


def main() -> None:
    point = sys.argv.pop(1)
    assert point in POINTS, f"the points are {', '.join(POINTS)}"
    sign, broadcast, wait = LedgerClient._sign_next, LedgerClient._broadcast, LedgerClient.wait_tx

    async def dying_sign(self: LedgerClient, *given: Any, **named: Any) -> tuple[bytes, int]:
        signed = await sign(self, *given, **named)
        if point == "before-record":
            _die()
        return signed

    async def dying_broadcast(self: LedgerClient, *given: Any, **named: Any) -> None:
        if point == "after-record":
            _die()
        await broadcast(self, *given, **named)
        if point == "after-send":
            _die()

    async def dying_wait(self: LedgerClient, *given: Any, **named: Any) -> Any:
        result = await wait(self, *given, **named)
        if point == "after-final":
            _die()
        return result

    LedgerClient._sign_next = dying_sign  # type: ignore[method-assign]
    LedgerClient._broadcast = dying_broadcast  # type: ignore[method-assign]
    LedgerClient.wait_tx = dying_wait  # type: ignore[method-assign]
    runpy.run_module("talkoo_operator", run_name="__main__", alter_sys=True)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
