"""`python -m talkoo_ledger --settings FILE`: a ledger node."""

from __future__ import annotations

import gc
import sys

from talkoo_ledger.service import serve
from talkoo_ledger.settings import LedgerSettings
from talkoo_runtime.supervision import run_service

COLLECT_EVERY = 100_000
"""New objects after which Python looks for cycles. A node under load makes thousands a second, hardly any in cycles; to
look every 700, its default, costs 8 % of the node's time, and at the limit of a machine a third of the latency."""

if __name__ == "__main__":
    gc.set_threshold(COLLECT_EVERY)
    sys.exit(run_service("ledger", LedgerSettings, serve))
