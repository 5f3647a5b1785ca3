"""A real agent process for tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
from talkoo_agent.settings import AgentSettings


class AgentProcess:
    """An agent as its container runs it."""

    def __init__(self, settings: AgentSettings, environment: dict[str, str] | None = None) -> None:
        self._path = Path(settings.state_dir).parent / "settings.json"
        self._path.write_bytes(msgspec.json.encode(settings))
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "talkoo_agent", "--settings", str(self._path)]
        self.process = subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL)

    def end(self) -> int:
        assert self.process is not None
        self.process.terminate()  # as at the end of a pod
        return self.process.wait(30)
