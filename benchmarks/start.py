"""How fast Talkoo starts, and where the seconds of a task go that are not training.

    python benchmarks/start.py [--json] [--quick] [--starts N]

Starts a federation with `talkoo up` on a fresh home and again on the used home, measures the command line, submits
`examples/digits` and tells the parts of submit to first step and of last step to payment. All figures are of this run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from talkoo_agent.processor import processor_name

from talkoo.client_async import AsyncClient
from talkoo.demo.example import example_folder
from talkoo_core.errors import Unavailable

TALKOO = [sys.executable, "-m", "talkoo"]
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
TASK_TIMEOUT_S = 300.0
SPARE_TIMEOUT_S = 90.0
SPARE_POLL_S = 0.2
TORCH_MODULES = ("talkoo_agent.trainer", "talkoo_agent.model_server", "talkoo_validator.recompute")
_SERVES = re.compile(r"\s(\S+) serves \(")


def load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def spread(values: Sequence[float]) -> dict[str, float]:
    """n, best, p50 and p95 of seconds."""
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {"n": len(ordered), "best": ordered[0], "p50": statistics.median(ordered), "p95": p95}


def command_line(runs: int) -> dict[str, Any]:
    """Seconds of `talkoo --version` and `--help`, process start and end included."""
    answer: dict[str, Any] = {"load": load()}
    for option in ("--version", "--help"):
        taken = []
        for _ in range(runs):
            began = time.perf_counter()
            subprocess.run([*TALKOO, option], check=True, stdout=subprocess.DEVNULL)
            taken.append(time.perf_counter() - began)
        answer[option] = spread(taken)
    return answer


@contextmanager
def federation(home: Path) -> Iterator[tuple[psutil.Process, dict[str, Any]]]:
    """`talkoo up` until it takes tasks; the process, and what its start took. Stopped at the end."""
    figures: dict[str, Any] = {"load": load(), "service_ready_s": {}}
    began = time.perf_counter()
    up = subprocess.Popen([*TALKOO, "up", "--home", str(home)], stdout=subprocess.PIPE, text=True)
    try:
        assert up.stdout is not None
        for line in up.stdout:
            now = round(time.perf_counter() - began, 2)
            if served := _SERVES.search(line):
                figures["service_ready_s"][served[1]] = now
            if "takes tasks" in line:
                figures["takes_tasks_s"] = now
                break
        else:
            raise Unavailable(f"`talkoo up` ended with status {up.wait()} before it took tasks; its log is above")
        process = psutil.Process(up.pid)
        figures["cpu_s_at_takes_tasks"] = round(sum(_cpu_s(one) for one in _family(process)), 2)
        yield process, figures
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=STOP_TIMEOUT_S)


def _family(up: psutil.Process) -> list[psutil.Process]:
    return [up, *up.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # a child that has just ended
        return 0.0
    return float(times.user + times.system)


def _role(process: psutil.Process) -> str:
    """The module of a service, `etcd`, or `talkoo up`."""
    arguments = process.cmdline()
    if "-m" in arguments:
        module = arguments[arguments.index("-m") + 1]
        return "talkoo up" if module == "talkoo" else module
    return Path(arguments[0]).name if arguments else "ended"


def memory(up: psutil.Process) -> dict[str, dict[str, Any]]:
    """Resident memory by role: the number of processes and the largest, in MB. Torch children are told apart."""
    sizes: dict[str, list[float]] = defaultdict(list)
    for process in _family(up):
        try:
            sizes[_role(process)].append(process.memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            continue
    return {
        role: {"processes": len(found), "max_rss_mb": round(max(found), 1), "torch": role in TORCH_MODULES}
        for role, found in sorted(sizes.items())
    }


async def spares_started(up: psutil.Process, nodes: int) -> float:
    """Seconds until every node's spare trainer exists."""
    began = time.perf_counter()
    while sum(1 for process in _family(up) if _role(process) == "talkoo_agent.trainer") < nodes:
        if time.perf_counter() - began > SPARE_TIMEOUT_S:
            raise Unavailable(f"the spare trainers are not there after {SPARE_TIMEOUT_S:.0f} s")
        await asyncio.sleep(SPARE_POLL_S)
    return time.perf_counter() - began


class Timeline:
    """When things were seen of one task, in seconds of the wall clock."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, int], float] = {}
        self.stages: dict[str, float] = {}
        self.first_step = self.last_step = 0.0

    def event(self, kind: str, segment: int) -> None:
        """The last of its kind and segment counts: the last rank's commitment completes it."""
        self.events[kind, segment] = time.time()

    def progress(self, update: Any) -> None:
        at = update.time_ns / 1e9
        if update.stage == "training":
            self.first_step = min(self.first_step or at, at)
            self.last_step = max(self.last_step, at) if update.step == update.steps else self.last_step
        elif not self.first_step:
            self.stages[update.stage] = max(self.stages.get(update.stage, 0.0), at)


async def one_task(home: Path) -> dict[str, Any]:
    """Train digits once; the parts of submit to first step and of last step to payment, in seconds."""
    seen, before = Timeline(), load()
    async with AsyncClient(home, user="alice") as client:
        height = (await client.status()).height
        began = time.time()
        prepared = await client.prepare(example_folder() / "task.yaml")
        ready = time.time()
        task_id = await client.create_task(prepared)
        created = time.time()

        async def stages() -> None:
            async for update in client.progress(task_id):
                seen.progress(update)

        async def events() -> None:
            async for block in client.block_events(height):
                for event in block.events:
                    attributes = {one.key: one.value for one in event.attributes}
                    if task_id in (event.subject, attributes.get("task")):
                        seen.event(event.type, int(attributes.get("segment", -1)))
                if ("task_completed", -1) in seen.events:
                    return

        watching = asyncio.create_task(stages())
        try:
            async with asyncio.timeout(TASK_TIMEOUT_S):
                await events()
                await client.wait(task_id)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        last = max(segment for _, segment in seen.events)
    done = seen.events["task_completed", -1]
    placed = seen.events["task_placed", -1]
    submit = _parts(
        began,
        ("program checked, FLOPs counted", ready),
        ("blobs sent, transaction in a block", created),
        ("placed", placed),
        ("blobs fetched, trainer there (slowest rank)", seen.stages["starting"]),
        ("ranks know where to meet", seen.stages["rendezvous"]),
        ("program loaded, ranks have met (slowest)", seen.stages["waiting"]),
        ("first segment opened, first step", seen.first_step),
    )
    payment = _parts(
        seen.last_step,
        ("last segment uploaded and committed", seen.events["segment_committed", last]),
        ("audit opened", seen.events["audit_opened", last]),
        ("steps computed again, verdict decided", seen.events["verdict", last]),
        ("accepted, paid, model registered", done),
    )
    return {
        "n": 1,
        "load": before,
        "submit_to_first_step": submit,
        "training_s": round(seen.last_step - seen.first_step, 2),
        "last_step_to_payment": payment,
        "spans_s": spans(home, task_id),
    }


def _parts(began: float, *ends: tuple[str, float]) -> dict[str, Any]:
    parts, before = {}, began
    for name, end in ends:
        parts[name] = round(end - before, 3)
        before = end
    return {"total_s": round(before - began, 2), "parts_s": parts}


def spans(home: Path, task_id: str) -> dict[str, dict[str, float]]:
    """Durations by span name from the trace files of all services, of the trace that this task is in."""
    rows = [json.loads(line) for file in (home / "traces").glob("*.jsonl") for line in file.read_text().splitlines()]
    mine = {row["trace_id"] for row in rows if task_id in row["attributes"].values()}
    taken: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["trace_id"] in mine and row["name"] != "payment":
            taken[row["name"]].append((row["end_ns"] - row["start_ns"]) / 1e9)
    return {name: {key: round(value, 3) for key, value in spread(found).items()} for name, found in taken.items()}


def measure(*, quick: bool, starts: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "processor": processor_name(),
            "cores": psutil.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "command_line": command_line(5 if quick else 20),
    }
    with tempfile.TemporaryDirectory(prefix="talkoo-start-") as folder:
        home = Path(folder) / "home"
        with federation(home) as (_, fresh):
            answer["fresh_start"] = fresh
        warm = []
        for number in range(1 if quick else starts):
            with federation(home) as (up, figures):
                figures["memory"] = memory(up)
                warm.append(figures)
                if number == starts - 1 and not quick:
                    wait_s = asyncio.run(spares_started(up, sum(_role(one) == "talkoo_agent" for one in _family(up))))
                    answer["task"] = asyncio.run(one_task(home))
                    answer["task"]["waited_for_spare_trainers_s"] = round(wait_s, 2)
                    answer["task"]["memory"] = memory(up)
        answer["warm_starts"] = warm
        answer["warm_takes_tasks_s"] = spread([start["takes_tasks_s"] for start in warm])
    return answer


def show(answer: dict[str, Any]) -> None:
    """The same as a plain table."""
    machine = answer["machine"]
    print(f"{answer['when']}  {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB")
    for option in ("--version", "--help"):
        print(f"talkoo {option:10}", _spread_text(answer["command_line"][option]))
    print(f"up, fresh home    {answer['fresh_start']['takes_tasks_s']:.1f} s  load {answer['fresh_start']['load'][0]}")
    loads = ", ".join(str(start["load"][0]) for start in answer["warm_starts"])
    print(f"up, used home     {_spread_text(answer['warm_takes_tasks_s'])}  load {loads}")
    for role, found in answer.get("task", answer["warm_starts"][-1])["memory"].items():
        print(f"  {role:28} {found['processes']:2}  {found['max_rss_mb']:7.1f} MB{'  torch' if found['torch'] else ''}")
    for name in ("submit_to_first_step", "last_step_to_payment"):
        if "task" in answer:
            print(f"{name.replace('_', ' ')}: {answer['task'][name]['total_s']} s  load {answer['task']['load'][0]}")
            for part, seconds in answer["task"][name]["parts_s"].items():
                print(f"  {seconds:7.3f} s  {part}")


def _spread_text(found: dict[str, float]) -> str:
    return f"n={found['n']}  best {found['best']:.2f} s  p50 {found['p50']:.2f} s  p95 {found['p95']:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print everything as one JSON value")
    parser.add_argument("--quick", action="store_true", help="one warm start, five runs of the command line, no task")
    parser.add_argument("--starts", type=int, default=3, help="starts on the used home (default 3)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the federation is stopped too
    answer = measure(quick=options.quick, starts=max(options.starts, 1))
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        show(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
