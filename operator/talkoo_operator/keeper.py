"""`python -m talkoo_operator.keeper`: beside the agent in its pod, it keeps the node's GPUNode true and fresh.

It renews a Lease as the node's heart-beat while the agent reports, writes what the agent says into the GPUNode when
that changes, and tells the agent when the Kubernetes node is cordoned or the GPUNode's specification changes. The agent
itself knows nothing of Kubernetes; they speak by files in a folder of the pod.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from talkoo_api.agent.v1 import node_pb2

from talkoo_core.errors import TalkooError
from talkoo_operator.api import KubernetesApi
from talkoo_operator.node_api import NodeApi
from talkoo_operator.node_facts import differs, facts_of, labels_of
from talkoo_operator.pod_devices import ask_kubelet
from talkoo_operator.status import timestamp
from talkoo_operator.told import Told
from talkoo_runtime.logs import setup_logging
from talkoo_runtime.node_files import ORDERS_FILE, PODS_FILE, REPORT_FILE, read_message, write_message
from talkoo_runtime.settings import load_settings

log = logging.getLogger(__name__)
Object = dict[str, Any]
Part = Callable[[], Awaitable[None]]
FRESH_S = 20.0
"""An agent that has not written its report for so long does not live; it writes every second."""
TELL_S = 2.0
ORDER_S = 0.5
SLOW_S = 300.0
"""Earnings are written at most so often."""
PODS_S = 10.0
RETRY_FIRST_S, RETRY_MAX_S = 1.0, 30.0
BEATS_MISSED = 3
"""A Lease holds for so many beats."""
SILENT_AGENT = "the agent does not report"


class KeeperSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read from the environment: `TALKOO_NODE` and so on."""

    node: str
    """The Kubernetes node's name, which is the GPUNode's."""
    pod: str
    """Who holds the Lease."""
    namespace: str
    """The release's: Leases lie there."""
    folder: str
    """Shared with the agent."""
    heartbeat_s: int = 10
    """At least; the operator asks for longer pauses where there are many nodes."""
    drain_grace_s: int = 0
    """For so long after a cordon shards may go on; then they are handed back at the end of their segment."""
    label_node: bool = False
    """Put the labels on the Kubernetes node, too; needs the right to patch it."""
    pod_resources: str = ""
    """Folder of the kubelet's PodResources socket; empty: metrics name no pods."""
    log_level: str = "info"


class Keeper:
    """What is known of the node, and the loops that act on it."""

    def __init__(self, settings: KeeperSettings, api: KubernetesApi) -> None:
        self._settings = settings
        self._folder = Path(settings.folder)
        self._api, self._nodes = api, NodeApi(api, settings.namespace)
        self._cordoned: bool | None = None
        """None until the Kubernetes node was seen."""
        self._spec: Object | None = None
        """Of the GPUNode; None until it was seen."""
        self._pace_s = settings.heartbeat_s
        self._written: Object = {}
        self._written_at = float("-inf")
        self._labels: dict[str, str | None] = {}

    async def run(self) -> None:
        """Until cancelled. What fails by somebody else's fault is tried again."""
        parts: list[Part] = [self._beat_forever, self._tell_forever, self._order_forever]
        parts += [self._follow_core_node, self._follow_node]
        if self._settings.pod_resources:
            parts.append(self._attribute_forever)
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(_again(part))

    # -- heart-beat --------------------------------------------------------------------------------------------------

    async def _beat_forever(self) -> None:
        node = await self._api.node(self._settings.node)
        silent = False
        while True:
            if await asyncio.to_thread(self._report) is not None:
                await self._nodes.beat(node, self._settings.pod, BEATS_MISSED * self._pace_s)
                silent = False
            elif not silent:
                silent = True
                log.warning("%s: no heart-beat is sent", SILENT_AGENT)
            await asyncio.sleep(self._pace_s)

    def _report(self) -> node_pb2.NodeReport | None:
        """The agent's, unless it is old."""
        report = read_message(self._folder / REPORT_FILE, node_pb2.NodeReport)
        if report is None or time.time() - report.time_ns / 1e9 > FRESH_S:
            return None
        return report

    # -- status ------------------------------------------------------------------------------------------------------

    async def _tell_forever(self) -> None:
        """From what the API server has, so that a keeper that begins anew does not write what stands there."""
        self._written = (await self._api.node(self._settings.node)).get("status", {})
        self._labels = {}
        while True:
            report = await asyncio.to_thread(self._report)
            if report is not None and self._cordoned is not None:
                await self._tell(report, self._cordoned)
            await asyncio.sleep(TELL_S)

    async def _tell(self, report: node_pb2.NodeReport, cordoned: bool) -> None:
        name = self._settings.node
        labels = labels_of(report)
        if labels != self._labels:
            await self._nodes.patch_node(name, {"labels": labels, "ownerReferences": [await self._owner()]})
            if self._settings.label_node:
                await self._nodes.label_core_node(name, labels)
            self._labels = labels
        now = timestamp(datetime.datetime.now(datetime.UTC).timestamp())
        facts = facts_of(report, cordoned, now)
        if differs(facts, self._written, time.monotonic() - self._written_at, SLOW_S):
            self._written = (await self._api.patch_node_status(name, facts)).get("status", {})
            self._written_at = time.monotonic()

    async def _owner(self) -> Object:
        """A GPUNode goes with its Kubernetes node."""
        node = await self._nodes.core_node(self._settings.node)
        return {"apiVersion": "v1", "kind": "Node", "name": self._settings.node, "uid": node["metadata"]["uid"]}

    # -- orders ------------------------------------------------------------------------------------------------------

    async def _follow_core_node(self) -> None:
        while True:
            async for node in self._nodes.watch_core_node(self._settings.node):
                cordoned = bool(node.get("spec", {}).get("unschedulable"))
                if cordoned != bool(self._cordoned):
                    log.info("the Kubernetes node is %s", "cordoned" if cordoned else "not cordoned any more")
                self._cordoned = cordoned

    async def _follow_node(self) -> None:
        while True:
            async for node in self._nodes.watch_node(self._settings.node):
                self._spec = node.get("spec", {})
                asked_s = int(node.get("status", {}).get("heartbeatSeconds", 0))
                self._pace_s = max(asked_s, self._settings.heartbeat_s)

    async def _order_forever(self) -> None:
        """What an earlier keeper ordered stands until both objects were seen."""
        drained_at: float | None = None
        given: node_pb2.NodeOrders | None = None
        while True:
            if self._cordoned is not None and self._spec is not None:
                drain = drain_reason(self._spec, self._cordoned)
                drained_at = (drained_at or time.monotonic()) if drain else None
                late = drained_at is not None and time.monotonic() - drained_at >= self._settings.drain_grace_s
                orders = node_pb2.NodeOrders(drain=drain, hand_back=late)
                if "priceUtlkPerGflop" in self._spec:
                    orders.price_utlk_per_gflop = self._spec["priceUtlkPerGflop"]
                if orders != given:
                    await asyncio.to_thread(write_message, self._folder / ORDERS_FILE, orders)
                    given = orders
            await asyncio.sleep(ORDER_S)

    # -- pods --------------------------------------------------------------------------------------------------------

    async def _attribute_forever(self) -> None:
        while True:
            pods = await ask_kubelet(Path(self._settings.pod_resources))
            await asyncio.to_thread(write_message, self._folder / PODS_FILE, pods)
            await asyncio.sleep(PODS_S)


def drain_reason(spec: Object, cordoned: bool) -> str:
    """Why the node takes no new work; empty when it does."""
    if spec.get("unschedulable"):
        return str(spec.get("reason") or "its GPUNode says unschedulable")
    return "its Kubernetes node is cordoned" if cordoned else ""


async def _again(part: Part) -> None:
    """For ever, with growing pauses after failures that are somebody else's."""
    pause = RETRY_FIRST_S
    while True:
        began = time.monotonic()
        try:
            await part()
        except TalkooError as error:
            pause = RETRY_FIRST_S if time.monotonic() - began > RETRY_MAX_S else pause
            log.warning("%s; again in %.0f s", error.message, pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, RETRY_MAX_S)


async def _main(settings: KeeperSettings) -> None:
    async with KubernetesApi() as api:
        await Told(f"{settings.node}-keeper").until(Keeper(settings, api).run())


def main() -> int:
    try:
        settings = load_settings(KeeperSettings, None, os.environ)
        setup_logging(f"{settings.node}-keeper", settings.log_level)
        asyncio.run(_main(settings))
    except TalkooError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
