"""How many TrainingTasks the operator takes a second, how soon their status tells, and what a restart costs.

    python benchmarks/operator_tasks.py [--tasks 1000] [--objects 5000] [--nodes 1000] [--json]

A real etcd and API server, a real federation of one organization (ledger, scheduler with its own etcd, validator,
gateway) and the operator, each a process of this machine; nobody trains. Needs root, and Go once.

- `scheduled`: from the call that creates a TrainingTask to the status that has the scheduler's decision about it.
  Program and data are the same ConfigMap, the number of operations is given. All are created as fast as the API server
  takes them, so a latency is mostly the queue; tasks per second is the figure to look at.
- `event_to_status`: one task after the other is cancelled on the ledger; from the block that says so to the status.
- `resync`: the operator is killed; from when its successor leads until no object waits to be looked at. `--objects`
  are there altogether: those that are on the ledger, and suspended ones. Its memory, in two runs with few and many of
  them, says what an object takes: an operator that has worked holds what Python has not given back.
- `heartbeats`: Leases of `--nodes` GPUNodes are renewed by the keepers' own calls; what one takes the API server, its
  use without them subtracted, and in cores at the pace that the operator asks of so many. The Kubernetes nodes that
  they belong to are kwok's, whose own Leases are renewed seldom here.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import psutil
from kubernetes.aio import client, config, watch
from talkoo_operator.api import KubernetesApi, api_client
from talkoo_operator.heartbeats import LOOK_S, pace_s
from talkoo_operator.keeper import BEATS_MISSED
from talkoo_operator.metrics import TASK
from talkoo_operator.node_api import NodeApi

from talkoo.client_async import AsyncClient
from talkoo.profile import Profile
from talkoo_core.errors import TalkooError, Unavailable
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.cluster.layout import Layout
from talkoo_sim.figures import spread
from talkoo_sim.operator_bed import (
    NAMESPACE,
    Bed,
    LocalFederation,
    OperatorProcess,
    eventually,
    install_crds,
    make_namespace,
    program,
    task,
)
from talkoo_sim.ports import free_port
from talkoo_sim.scraping import scrape

GROUP, VERSION, TASKS = "talkoo.dev", "v1alpha1", "trainingtasks"
USER, SPACE, RICH_TLK = "alice", "bench", 5_000_000
CREATORS = 8
EVENTS = 50
SETTLE_S = 10.0
WINDOW_S, WINDOWS, FASTER = 20.0, 3, 10
"""Heart-beats come so many times as often as the operator asks for, in turn with as long without any: else what the API
server does for a thousand other nodes hides them."""
PATIENCE_S = 900.0
Object = dict[str, Any]


def is_scheduled(status: Object) -> bool:
    """Placed, or told by the scheduler why not yet."""
    placed = [c for c in status.get("conditions", ()) if c["type"] == "Placed"]
    return bool(placed) and "no scheduler" not in placed[0]["message"]


class Seen:
    """When each task's status first was scheduled, and first was cancelled, by a watch."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.scheduled: dict[str, float] = {}
        self.cancelled: dict[str, float] = {}
        self.ids: dict[str, str] = {}
        self.news = asyncio.Event()

    async def follow(self) -> None:
        while True:
            stream = watch.Watch().stream(
                self._api.list_namespaced_custom_object, GROUP, VERSION, SPACE, TASKS, timeout_seconds=300
            )
            async for event in stream:
                self._note(event["object"], time.monotonic())

    def _note(self, seen: Object, now: float) -> None:
        name, status = seen["metadata"]["name"], seen.get("status", {})
        if status.get("taskId"):
            self.ids[name] = status["taskId"]
        if is_scheduled(status):
            self.scheduled.setdefault(name, now)
        if status.get("phase") == "Cancelled":
            self.cancelled.setdefault(name, now)
        self.news.set()

    async def until(self, holds: Any, what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > end:
                raise Unavailable(f"not within {PATIENCE_S:.0f} s: {what} ({len(self.scheduled)} are scheduled)")
            self.news.clear()
            try:
                await asyncio.wait_for(self.news.wait(), 5.0)
            except TimeoutError:
                continue


async def create(api: Any, made: Sequence[Object]) -> dict[str, float]:
    """When each call began."""
    began: dict[str, float] = {}
    rest = iter(made)

    async def one() -> None:
        for each in rest:
            began[each["metadata"]["name"]] = time.monotonic()
            await api.create_namespaced_custom_object(GROUP, VERSION, SPACE, TASKS, each)

    async with asyncio.TaskGroup() as group:
        for _ in range(CREATORS):
            group.create_task(one())
    return began


class Cores:
    """Processor time of every part since this was made."""

    def __init__(self, cluster: Cluster, federation: LocalFederation, operator: OperatorProcess) -> None:
        self._parts = {name: psutil.Process(cluster.pid(name)) for name in ("kube-apiserver", "etcd")}
        self._parts |= {"operator": psutil.Process(operator.process.pid), "benchmark": psutil.Process()}
        for each in psutil.Process(federation.pid).children(recursive=True):
            module = next((word for word in each.cmdline() if word.startswith("talkoo_")), each.name())
            self._parts[f"federation: {module.removeprefix('talkoo_')}"] = each
        self._before = {name: sum(part.cpu_times()[:2]) for name, part in self._parts.items()}

    def ms_each(self, count: int) -> dict[str, float]:
        """Milliseconds for each of so many."""
        spent = {name: sum(part.cpu_times()[:2]) - self._before[name] for name, part in self._parts.items()}
        return {name: round(seconds / count * 1000, 1) for name, seconds in spent.items()}


async def measure_scheduled(
    api: Any, seen: Seen, cluster: Cluster, federation: LocalFederation, operator: OperatorProcess, count: int
) -> Object:
    process, cores = psutil.Process(operator.process.pid), Cores(cluster, federation, operator)
    began = await create(api, [task(SPACE, f"task-{number}") for number in range(count)])
    created = max(began.values()) - min(began.values())
    await seen.until(lambda: began.keys() <= seen.scheduled.keys(), "every task is scheduled")
    took = max(seen.scheduled[name] for name in began) - min(began.values())
    return {
        "tasks": count,
        "seconds": round(took, 2),
        "per_second": round(count / took, 1),
        "creating_s": round(created, 2),
        "latency_s": spread([seen.scheduled[name] - at for name, at in began.items()]),
        "cpu_ms_per_task": cores.ms_each(count),
        "operator_mb": round(process.memory_info().rss / 2**20, 1),
    }


async def measure_events(seen: Seen, federation: LocalFederation, count: int) -> Object:
    """The client hears of the block when the operator does: over the same gateway."""
    home = federation.home
    profile = Profile.direct(
        endpoint=federation.gateway,
        certificate=home / "users" / USER / "certificate.pem",
        private_key=home / "users" / USER / "private-key.pem",
        trust_bundle=home / "trust.pem",
        account_key=home / "users" / USER / "account.key",
    )
    taken = []
    async with AsyncClient(profile=profile) as user:
        for name in sorted(seen.ids)[:count]:
            await user.cancel(seen.ids[name])
            at = time.monotonic()
            await seen.until(lambda name=name: name in seen.cancelled, f"{name} is cancelled")
            taken.append(max(0.0, seen.cancelled[name] - at))
    return spread(taken)


async def measure_resync(api: Any, bed: Bed, objects: int) -> Object:
    there = len((await api.list_namespaced_custom_object(GROUP, VERSION, SPACE, TASKS))["items"])
    await create(api, [task(SPACE, f"held-{number}", suspend=True) for number in range(max(0, objects - there))])
    bed.operators[-1].kill()
    port = free_port()
    successor = bed.operator("successor", metrics_listen=f"127.0.0.1:{port}")
    await asyncio.to_thread(eventually, lambda: successor.leads, "the successor leads")
    began, end = time.monotonic(), time.monotonic() + PATIENCE_S
    looked = depth = 0.0
    while looked < objects or depth > 0:
        if time.monotonic() > end:
            raise Unavailable(f"not within {PATIENCE_S:.0f} s: all are looked at ({looked:.0f}, {depth:.0f} wait)")
        await asyncio.sleep(0.2)  # between two scrapes
        seen = await scrape(port)
        looked = seen.total("talkoo_operator_reconciles_total", kind=TASK)
        depth = seen.total("talkoo_operator_queue_depth", kind=TASK)
    rss = psutil.Process(successor.process.pid).memory_info().rss
    return {"objects": objects, "seconds": round(time.monotonic() - began, 2), "operator_mb": round(rss / 2**20, 1)}


async def measure_heartbeats(kubernetes: KubernetesApi, cluster: Cluster, nodes: int) -> Object:
    """By the calls that keepers make, each with the version of its own Lease."""
    server = psutil.Process(cluster.pid("kube-apiserver"))
    pace = pace_s(nodes)
    names = [f"node-{number}" for number in range(nodes)]
    cluster.stop_part("kube-controller-manager")
    await asyncio.to_thread(cluster.start_fake_nodes, names)
    keepers: list[tuple[NodeApi, Object]] = []
    for name in names:
        await kubernetes.ensure_node(
            {"apiVersion": f"{GROUP}/{VERSION}", "kind": "GPUNode", "metadata": {"name": name}}
        )
        node = await kubernetes.node(name)
        keepers.append((NodeApi(kubernetes, NAMESPACE), node))
        await keepers[-1][0].beat(node, "bench", BEATS_MISSED * pace)

    async def cores(doing: Awaitable[None]) -> float:
        before, at = sum(server.cpu_times()[:2]), time.monotonic()
        await doing
        return (sum(server.cpu_times()[:2]) - before) / (time.monotonic() - at)

    await asyncio.sleep(LOOK_S + SETTLE_S)  # until the operator has looked at the new nodes
    for keeper, node in keepers:  # a node is heard when its Lease has changed once; that is written down once
        await keeper.beat(node, "bench", BEATS_MISSED * pace)
    await asyncio.sleep(LOOK_S + 3 * SETTLE_S)
    beats, turn = 0, itertools.cycle(keepers)

    async def beat() -> None:
        nonlocal beats
        due = began = time.monotonic()
        while time.monotonic() < began + WINDOW_S:
            keeper, node = next(turn)
            await keeper.beat(node, "bench", BEATS_MISSED * pace)
            beats += 1
            due += pace / nodes / FASTER
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    more, idle = [], []
    for _ in range(WINDOWS):
        idle.append(await cores(asyncio.sleep(WINDOW_S)))
        more.append(await cores(beat()) - idle[-1])
    each_s = sum(more) * WINDOW_S / beats
    return {
        "nodes": nodes,
        "pace_s": pace,
        "api_server_cores": round(each_s * nodes / pace, 4),
        "api_server_cores_idle": spread(idle),
        "beats": beats,
        "ms_per_beat": round(each_s * 1000, 2),
        "cores_more_in_each_window": [round(value, 3) for value in more],
    }


async def measure(cluster: Cluster, federation: LocalFederation, folder: Path, arguments: argparse.Namespace) -> Object:
    await config.load_kube_config(str(cluster.layout.kubeconfig))
    bed = Bed(cluster, federation, folder)
    async with api_client() as core:
        api = client.CustomObjectsApi(core)
        cluster.apply(program(SPACE))
        operator = bed.operator("first")
        await asyncio.to_thread(eventually, lambda: operator.leads, "the operator leads")
        seen = Seen(api)
        following = asyncio.create_task(seen.follow())
        try:
            await create(api, [task(SPACE, "first")])  # what is loaded and made ready once is no task's cost
            await seen.until(lambda: "first" in seen.scheduled, "the first task is scheduled")
            answer: Object = {
                "scheduled": await measure_scheduled(api, seen, cluster, federation, operator, arguments.tasks)
            }
            say(answer)
            answer["event_to_status_s"] = await measure_events(seen, federation, min(EVENTS, arguments.tasks))
            say(answer)
            answer["resync"] = await measure_resync(api, bed, arguments.objects)
            say(answer)
            if arguments.nodes:
                kubernetes = KubernetesApi()
                kubernetes.client, kubernetes.custom = core, api
                answer["heartbeats"] = await measure_heartbeats(kubernetes, cluster, arguments.nodes)
        finally:
            following.cancel()
            bed.stop_operators()
    return answer


def say(answer: Object) -> None:
    name, figures = list(answer.items())[-1]
    sys.stderr.write(f"{name}: {json.dumps(figures)}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--cluster", default="bench", help="its name: two runs at a time need two")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cluster = Cluster(Layout(arguments.cluster, nodes=0))
    with tempfile.TemporaryDirectory(prefix="talkoo-bench-") as name:
        folder = Path(name)
        federation = LocalFederation(folder / "home", {USER: RICH_TLK})
        load = os.getloadavg()
        try:
            cluster.down()
            cluster.up()
            install_crds(cluster)
            federation.start()
            make_namespace(cluster, NAMESPACE)
            make_namespace(cluster, SPACE, federation.account_key(USER))
            answer = asyncio.run(measure(cluster, federation, folder, arguments))
        except TalkooError as error:
            sys.stderr.write(f"error: {error.message}\n")
            return error.exit_status
        finally:
            federation.stop()
            cluster.down()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    answer = {"machine": machine, "load_before": [round(value, 2) for value in load], **answer}
    sys.stdout.write(json.dumps(answer, indent=None if arguments.json else 1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
