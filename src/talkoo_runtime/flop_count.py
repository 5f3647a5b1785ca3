"""How many operations one sample of a program costs: the program is run once, in a child process with torch."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from talkoo_core.errors import FAMILIES, Failed, Unavailable, error_of
from talkoo_runtime.bundle import unpack
from talkoo_runtime.exit_status import exit_status

COUNT_TIMEOUT_S = 120.0
MAX_CHILD_ERROR = 1000
MAX_CHILD_OUTPUT = 1 << 20


async def count_flops(code: bytes, data: Path, module: str, config_json: str) -> int:
    """Operations of one sample, counted by a child on exactly the packed program: a file left out of it shows now."""
    with tempfile.TemporaryDirectory(prefix="talkoo-count-") as folder:
        await asyncio.to_thread(unpack, code, Path(folder))
        command = [sys.executable, "-m", "talkoo_agent.trainer", "--count-flops", folder, "--module", module]
        command += ["--config", config_json, "--data", str(data)]
        return _counted(*await _run_child(command))


async def _run_child(command: list[str]) -> tuple[int, bytes, bytes]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)  # noqa: ASYNC220  # vfork
        status = await _ended(process)
        out.seek(0)
        err.seek(0)
        return status, out.read(MAX_CHILD_OUTPUT), err.read(MAX_CHILD_OUTPUT)


async def _ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return await asyncio.wait_for(exit_status(process), COUNT_TIMEOUT_S)
    except TimeoutError:
        raise Failed(
            f"the module did not finish one sample in {COUNT_TIMEOUT_S:.0f} s; make open_data and the first batch "
            "quicker, or give the number with --flops-per-sample",
            code="count_timeout",
        ) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _counted(status: int, out: bytes, err: bytes) -> int:
    """The child's last line is `{"flops_per_sample": n}`; else its exit status is an error family's, with one line."""
    try:
        if status == 0:
            return int(json.loads(out.decode().strip().splitlines()[-1])["flops_per_sample"])
    except (ValueError, IndexError, KeyError, TypeError):
        pass
    if status < 0:
        raise Unavailable(
            f"the child that counts operations was ended by {signal.Signals(-status).name}; is there enough memory?",
            code="count_killed",
        )
    families = {family.exit_status: name for name, family in FAMILIES.items()}
    raise error_of(families.get(status, "failed"), _last_error_line(err, status), "model_raised")


def _last_error_line(err: bytes, status: int) -> str:
    lines = err.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ")[:MAX_CHILD_ERROR] if lines else f"the module ended with status {status}"
