"""`python -m talkoo_validator --settings FILE`."""

from __future__ import annotations

import sys

from talkoo_runtime.supervision import run_service
from talkoo_validator.service import serve
from talkoo_validator.settings import ValidatorSettings

if __name__ == "__main__":
    sys.exit(run_service("validator", ValidatorSettings, serve))
