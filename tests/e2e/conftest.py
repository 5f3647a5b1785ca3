"""A whole federation as a person runs it: `talkoo up` and `talkoo …` as real processes, nothing imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

TALKOO = str(Path(sys.executable).parent / "talkoo")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"
START_S = 180.0
STOP_S = 40.0
COMMAND_S = 240.0


def eventually(holds: Callable[[], Any], what: str, patience_s: float = 90.0) -> Any:
    """Poll until `holds` gives something true; that is returned."""
    deadline = time.monotonic() + patience_s
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"not in {patience_s:.0f} s: {what}"
        time.sleep(0.1)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    out: str
    err: str

    def error_line(self) -> str:
        """The single line on stderr that says what was wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


class Home:
    """A home folder and the federation that may run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        self.up: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Like a person: type `talkoo up` and wait for its invitation."""
        seen = self.log.read_text() if self.log.exists() else ""
        with self.log.open("ab") as log:
            self.up = subprocess.Popen(
                [TALKOO, "up", "--home", str(self.folder), *options], stdout=log, stderr=subprocess.STDOUT
            )

        def ready() -> bool:
            assert self.up is not None
            text = self.log.read_text()[len(seen) :]
            assert self.up.poll() is None, text
            return "takes tasks" in text

        eventually(ready, "the federation takes tasks", START_S)

    def stop(self) -> float:
        """Ctrl-C; returns the seconds it took. Nothing may be left running."""
        assert self.up is not None
        began = time.monotonic()
        self.up.send_signal(signal.SIGINT)
        assert self.up.wait(STOP_S) == 0, self.log.read_text()[-2000:]
        took = time.monotonic() - began
        eventually(lambda: not self.processes(), "no process of the federation is left", 20.0)
        return took

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Running processes whose command line names this home (and `part`)."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if str(self.folder) in line and part in line and alive and process.pid != os.getpid():
                found.append(process)
        return found

    def kill(self, part: str) -> int:
        """SIGKILL to the one process whose command line holds `part`."""
        (victim,) = self.processes(part)
        victim.kill()
        return int(victim.pid)

    def run(self, *arguments: str, user: str = "", stdin: str = "") -> Said:
        environment = {**os.environ, "TALKOO_HOME": str(self.folder), "NO_COLOR": "1"}
        command = [TALKOO, *(["--as", user] if user else []), *arguments]
        done = subprocess.run(
            command, env=environment, input=stdin, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str, user: str = "") -> str:
        said = self.run(*arguments, user=user)
        assert said.status == 0, said.err + said.out
        return said.out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "-o", "json"))

    def balance(self, label: str) -> int:
        return next(int(a["balance_utlk"]) for a in self.json("accounts") if a["label"] == label)

    def height(self) -> int:
        return max(int(block["height"]) for block in self.json("blocks"))

    def submit(self, task: Path, *options: str) -> str:
        """The id of the submitted task."""
        out = self.ok("submit", str(task), *options)
        found = re.search(r"task-[0-9a-f]{16}", out)
        assert found is not None, out
        return found[0]

    def task(self, task_id: str) -> Any:
        return self.json("tasks", task_id)

    def ended(self, task_id: str) -> Any:
        """Wait until a task has ended; its record."""

        def look() -> Any:
            task = self.task(task_id)
            return task if task["phase"] in ("completed", "failed", "cancelled") else None

        return eventually(look, f"{task_id} ends", 240.0)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One federation for all of these tests, with a cheater among its six nodes."""
    where = Home(tmp_path_factory.mktemp("federation") / "home")
    where.start("--forge", "west-1:1", "--metrics")
    try:
        yield where
    finally:
        if where.up is not None and where.up.poll() is None:
            where.stop()


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the example in a folder of its own; `edits` are replacements in task.yaml, `code` in digits.py."""

    def make(edits: dict[str, str] | None = None, code: dict[str, str] | None = None) -> Path:
        folder = tmp_path / "program"
        shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
        for name, changes in (("task.yaml", edits or {}), ("digits.py", code or {})):
            text = (folder / name).read_text()
            for old, new in changes.items():
                assert old in text, f"{name} does not hold {old!r}"
                text = text.replace(old, new)
            (folder / name).write_text(text)
        return folder / "task.yaml"

    return make
