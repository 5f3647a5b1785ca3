"""A child that is kept alive: started, watched, started again after a crash, stopped in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)
FIRST_BACK_OFF_S = 0.3
MAX_BACK_OFF_S = 10.0
STEADY_S = 30.0
"""A child that lived so long begins with the first back-off again."""
STOP_TIMEOUT_S = 6.0
KEPT_LINES = 20
MAX_LOG_BYTES = 16 * 1024 * 1024
LINE_LIMIT = 1 << 20


class ChildProcess:
    """One child with its log file. `on_crash` gets a sentence; `ready` is set at its line `ready …` on stdout."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log_path: Path,
        *,
        environment: Mapping[str, str] | None = None,
        on_crash: Callable[[str], None] | None = None,
        ready_when: str = "ready ",
    ) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self.restarts = 0
        self._arguments = list(arguments)
        self._log_path = log_path
        self._environment = {
            **os.environ,
            "TALKOO_DIE_WITH_PARENT": "1",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            **(environment or {}),
        }
        self._on_crash = on_crash or (lambda sentence: log.warning("%s", sentence))
        self._ready_when = ready_when
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def stop(self) -> None:
        """SIGTERM, a bounded wait, SIGKILL."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            log.warning("%s did not stop in %.0f s and is killed", self.name, STOP_TIMEOUT_S)
            process.kill()
            await process.wait()

    async def _keep(self) -> None:
        back_off = FIRST_BACK_OFF_S
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            status = await self._run_once()
            self.ready.clear()
            self.restarts += 1
            back_off = FIRST_BACK_OFF_S if now() - began > STEADY_S else back_off
            self._on_crash(f"{self.name} {_ending(status)}{self._why()}; started again in {back_off:.1f} s")
            await asyncio.sleep(back_off)
            back_off = min(back_off * 2, MAX_BACK_OFF_S)

    async def _run_once(self) -> int:
        self._last_lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
            limit=LINE_LIMIT,
        )
        assert self._process.stdout is not None
        await self._copy_output(self._process.stdout)
        return await self._process.wait()

    async def _copy_output(self, stream: asyncio.StreamReader) -> None:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        if self._log_path.exists() and self._log_path.stat().st_size > MAX_LOG_BYTES:
            self._log_path.replace(self._log_path.with_suffix(".old.log"))
        with self._log_path.open("a", encoding="utf-8") as file:
            async for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                file.write(line + "\n")
                file.flush()
                self._last_lines.append(line)
                if line.startswith(self._ready_when) or (self._ready_when != "ready " and self._ready_when in line):
                    self.ready.set()

    def _why(self) -> str:
        telling = [line for line in self._last_lines if line.strip()]
        errors = [line for line in telling if "error" in line.lower()]
        return f": {(errors or telling)[-1].strip()}" if telling else ""


def _ending(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
