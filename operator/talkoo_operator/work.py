"""What the leader does: watch (kopf), list now and then, follow the ledger; all of it only wakes the controllers."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import kopf

from talkoo_core.errors import TalkooError
from talkoo_operator.accounts import Accounts
from talkoo_operator.api import GROUP, NODES, TASKS, VERSION, KubernetesApi
from talkoo_operator.following import Following
from talkoo_operator.metrics import NODE, TASK, Phases
from talkoo_operator.nodes import NodeController
from talkoo_operator.probe import Probe
from talkoo_operator.queue import WorkQueue
from talkoo_operator.settings import OperatorSettings
from talkoo_operator.tasks import TaskController
from talkoo_runtime.keys import load_key

log = logging.getLogger(__name__)
TASK_WORKERS, NODE_WORKERS = 16, 4
RESYNC_S = 60.0
"""Every object is looked at so often, whatever the watches missed."""
RETRY_S = 2.0


async def work(settings: OperatorSettings, probe: Probe) -> None:
    """Until it is cancelled, or a part of it fails."""
    async with KubernetesApi() as api:
        accounts = Accounts(api, settings)
        owner = accounts.client(load_key(Path(settings.owner_key)))
        following = Following(lambda key: tasks.wake(key))
        tasks = WorkQueue(TaskController(api, accounts, following, time.time).work, TASK)
        controller = NodeController(api, owner, settings)
        nodes = WorkQueue(controller.work, NODE)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(tasks.run(TASK_WORKERS))
                group.create_task(nodes.run(NODE_WORKERS))
                group.create_task(following.run(owner))
                group.create_task(controller.listen(nodes.wake))
                phases = Phases()
                group.create_task(_resync(api, settings, tasks, nodes, probe, phases))
                group.create_task(_watch(settings, tasks, nodes, phases))
        finally:
            await accounts.close()
            await owner.close()


async def _resync(
    api: KubernetesApi, settings: OperatorSettings, tasks: WorkQueue, nodes: WorkQueue, probe: Probe, phases: Phases
) -> None:
    """List all objects and wake each; also what the liveness probe goes by."""
    probe.seen()
    while True:
        try:
            keys = await api.task_keys(settings.watch_namespaces)
            phases.keep(TASK, set(keys))
            for key in keys:
                tasks.wake(key)
            names = [("", name) for name in await api.node_names()]
            phases.keep(NODE, set(names))
            for name in names:
                nodes.wake(name)
            probe.seen()
        except TalkooError as error:
            log.warning("the objects cannot be listed: %s", error)
            await asyncio.sleep(RETRY_S)
            continue
        await asyncio.sleep(RESYNC_S)


async def _watch(settings: OperatorSettings, tasks: WorkQueue, nodes: WorkQueue, phases: Phases) -> None:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def log_in(**given: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)

    @kopf.on.event(GROUP, VERSION, TASKS, registry=registry)
    async def task_changed(namespace: str | None, name: str | None, type: str | None, body: Any, **_: Any) -> None:  # noqa: A002 (kopf's name)
        key = namespace or "", name or ""
        phases.heard(TASK, key, type, body)
        tasks.wake(key)

    @kopf.on.event(GROUP, VERSION, NODES, registry=registry)
    async def node_changed(name: str | None, type: str | None, body: Any, **_: Any) -> None:  # noqa: A002 (kopf's name)
        key = "", name or ""
        phases.heard(NODE, key, type, body)
        nodes.wake(key)

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 330

    kopf_settings = kopf.OperatorSettings()
    await kopf.operator(
        registry=registry,
        settings=kopf_settings,
        standalone=True,
        clusterwide=not settings.watch_namespaces,
        namespaces=list(settings.watch_namespaces),
    )
