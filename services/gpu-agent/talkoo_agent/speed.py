"""The node's speed: the machine's, measured once by a child with torch and remembered, times the node's duty.

Starting torch takes seconds, and a node should offer itself at once after a restart. All nodes on one machine compute
on the same kind of core or card, so one of them measures for all (a lock in the machine's cache folder sees to that) at
duty 1; a node's own speed is that times its duty, because the throttle makes it rest for exactly the remaining time.
The figure is measured again when the hardware or torch changed, or when it is older than `STALE_S`.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from talkoo_agent.devices import Device
from talkoo_agent.spawn import spawn
from talkoo_agent.trainer.throttle import Throttle
from talkoo_agent.trainer_messages import LINE_MAX_BYTES, Measured, from_trainer
from talkoo_agent.visible import seen_by_cuda
from talkoo_core.errors import Failed
from talkoo_runtime.disk import write_atomic

STALE_S = 7 * 24 * 3600.0
MEASURE_TIMEOUT_S = 180.0
LOCK_POLL_S = 0.1


class Remembered(msgspec.Struct, frozen=True):
    """What stands in the cache: `measured` at duty 1; `measured_at_s` since the epoch."""

    measured_at_s: float
    measured: Measured


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where this user's processes share what they know of this machine."""
    given = environment.get("XDG_CACHE_HOME", "")
    return (Path(given) if given else Path(environment.get("HOME") or Path.cwd()) / ".cache") / "talkoo"


def _key(device: Device) -> str:
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise Failed("this node has no torch; install talkoo[train] to let it train", code="no_torch") from None
    # A home folder may be shared by machines: the machine's name is part of what was measured.
    text = f"{platform.node()}|{device.description}|{device.kind}|{torch}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def speed_of(device: Device, duty: float, state_dir: Path, card: str = "") -> Measured:
    """Remembered, or measured now on the card with this UUID.

    Raises Failed (codes `no_torch`, `cannot_measure`) and InvalidInput (code `bad_duty`: one that cannot be kept).
    """
    Throttle(duty, device.kind)
    path = machine_folder(state_dir) / f"speed-{_key(device)}.json"
    found = _read(path)
    if found is None:
        async with alone(path.with_suffix(".lock")):
            found = _read(path)  # another node may have measured while this one waited
            if found is None:
                found = await _measure(card)
                write_atomic(path, msgspec.json.encode(Remembered(time.time(), found)))
    return msgspec.structs.replace(found, speed_flops=int(found.speed_flops * duty), duty=duty)


def machine_folder(own: Path) -> Path:
    """What nodes of one machine share; `own` for a service that has no home and keeps such things with its state."""
    shared = cache_folder(os.environ)
    try:
        shared.mkdir(parents=True, exist_ok=True)
    except OSError:
        return own
    return shared if os.access(shared, os.W_OK) else own


def _read(path: Path) -> Measured | None:
    """None when there is nothing useful: measuring again is always right."""
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Remembered)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return known.measured if 0 <= time.time() - known.measured_at_s < STALE_S else None


@asynccontextmanager
async def alone(path: Path) -> AsyncIterator[None]:
    """One at a time on this machine. Polled, so that a service that stops need not wait for the lock."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_POLL_S)
        yield


async def _measure(card: str) -> Measured:
    arguments = [sys.executable, "-m", "talkoo_agent.trainer", "--measure"]
    process = await spawn(arguments, os.environ | seen_by_cuda(card), LINE_MAX_BYTES)
    try:
        async with asyncio.timeout(MEASURE_TIMEOUT_S):
            out, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
            status = await process.wait()
    except TimeoutError:
        raise Failed(f"measuring the node took over {MEASURE_TIMEOUT_S:.0f} s", code="cannot_measure") from None
    finally:
        process.kill()
        process.close()
    if status != 0:
        last = (errors.decode("utf-8", "replace").strip().splitlines() or ["no word"])[-1]
        raise Failed(f"the node cannot be measured: {last}", code="cannot_measure")
    message = from_trainer.decode(out)
    assert isinstance(message, Measured)
    return message
