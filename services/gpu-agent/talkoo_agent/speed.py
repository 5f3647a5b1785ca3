"""The node's measured speed: once by a child with torch, then remembered for this hardware and this duty.

Starting torch takes seconds, and a node should offer itself at once after a restart. The figure is measured again when
the hardware, the duty or torch changed, or when it is older than `STALE_S`.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import sys
from pathlib import Path

import msgspec

from talkoo_agent.devices import Device
from talkoo_agent.spawn import spawn
from talkoo_agent.trainer_messages import LINE_MAX_BYTES, Measured, from_trainer
from talkoo_core.errors import Failed
from talkoo_runtime.disk import write_atomic

FILE_NAME = "speed.json"
STALE_S = 7 * 24 * 3600.0
MEASURE_TIMEOUT_S = 180.0


class Remembered(msgspec.Struct, frozen=True):
    key: str
    measured_at_s: float
    measured: Measured


def _key(device: Device, duty: float) -> str:
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise Failed("this node has no torch; install talkoo[train] to let it train", code="no_torch") from None
    return hashlib.sha256(f"{device.description}|{device.kind}|{duty}|{torch}".encode()).hexdigest()


async def speed_of(device: Device, duty: float, state_dir: Path, now_s: float) -> Measured:
    """Remembered or measured now. Raises Failed (codes `no_torch`, `cannot_measure`)."""
    path, key = state_dir / FILE_NAME, _key(device, duty)
    known = _read(path)
    if known is not None and known.key == key and 0 <= now_s - known.measured_at_s < STALE_S:
        return known.measured
    measured = await _measure(duty)
    write_atomic(path, msgspec.json.encode(Remembered(key, now_s, measured)))
    return measured


def _read(path: Path) -> Remembered | None:
    """None when there is nothing useful: measuring again is always right."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Remembered)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


async def _measure(duty: float) -> Measured:
    arguments = [sys.executable, "-m", "talkoo_agent.trainer", "--measure", "--duty", str(duty)]
    process = await spawn(arguments, None, LINE_MAX_BYTES)
    try:
        async with asyncio.timeout(MEASURE_TIMEOUT_S):
            out, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
            status = await process.wait()
    except TimeoutError:
        raise Failed(f"measuring the node took over {MEASURE_TIMEOUT_S:.0f} s", code="cannot_measure") from None
    finally:
        if process.returncode is None:
            process.popen.kill()
            await process.wait()
        process.close()
    if status != 0:
        last = (errors.decode("utf-8", "replace").strip().splitlines() or ["no word"])[-1]
        raise Failed(f"the node cannot be measured: {last}", code="cannot_measure")
    message = from_trainer.decode(out)
    assert isinstance(message, Measured)
    return message
