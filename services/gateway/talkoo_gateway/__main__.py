"""`python -m talkoo_gateway --settings FILE`."""

from __future__ import annotations

import sys

from talkoo_gateway.service import serve
from talkoo_gateway.settings import GatewaySettings
from talkoo_runtime.supervision import run_service

if __name__ == "__main__":
    sys.exit(run_service("gateway", GatewaySettings, serve))
