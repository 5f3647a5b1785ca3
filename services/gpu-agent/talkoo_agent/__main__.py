"""`python -m talkoo_agent --settings FILE`: the agent of one node."""

from __future__ import annotations

from talkoo_agent.service import serve
from talkoo_agent.settings import AgentSettings
from talkoo_runtime.supervision import run_service

if __name__ == "__main__":
    raise SystemExit(run_service("agent", AgentSettings, serve))
