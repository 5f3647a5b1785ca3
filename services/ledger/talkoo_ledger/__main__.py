"""`python -m talkoo_ledger --settings FILE`: a ledger node."""

from __future__ import annotations

import sys

from talkoo_ledger.service import serve
from talkoo_ledger.settings import LedgerSettings
from talkoo_runtime.supervision import run_service

if __name__ == "__main__":
    sys.exit(run_service("ledger", LedgerSettings, serve))
