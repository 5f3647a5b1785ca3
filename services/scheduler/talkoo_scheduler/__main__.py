"""`python -m talkoo_scheduler --settings FILE`: a scheduler."""

from __future__ import annotations

import sys

from talkoo_runtime.supervision import run_service
from talkoo_scheduler.service import serve
from talkoo_scheduler.settings import SchedulerSettings

if __name__ == "__main__":
    sys.exit(run_service("scheduler", SchedulerSettings, serve))
