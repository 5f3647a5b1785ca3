"""What the leader does: watch (kopf), list now and then, follow the ledger; all of it only wakes the controllers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import kopf

from talkoo_core.errors import TalkooError
from talkoo_operator.accounts import Accounts
from talkoo_operator.api import DATASETS, FEDERATIONS, GROUP, NODES, PROPOSALS, TASKS, VERSION, KubernetesApi
from talkoo_operator.clock import ServerClock
from talkoo_operator.datasets import DatasetController
from talkoo_operator.federations import FederationController, ensure_federation
from talkoo_operator.following import Following
from talkoo_operator.known import Known
from talkoo_operator.limits import Limits
from talkoo_operator.metrics import NODE, TASK, Phases
from talkoo_operator.nodes import NodeController
from talkoo_operator.probe import Probe
from talkoo_operator.proposals import ProposalController
from talkoo_operator.queue import Key, Lane, WorkQueue
from talkoo_operator.settings import OperatorSettings
from talkoo_operator.shared import Shared
from talkoo_operator.tasks import TaskController
from talkoo_runtime.keys import load_key

log = logging.getLogger(__name__)
TASK_WORKERS, NODE_WORKERS, OTHER_WORKERS = 32, 4, 2
READ_ALL_FROM = 32
"""From so many objects on, the ledger's tasks are read with one call when the operator begins."""
FOR_KNOWN = 8
"""Workers besides for tasks that are not new: of these nobody waits for a transaction to become final."""
RETRY_S = 2.0
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Watched:
    """One kind of object, and who looks at it."""

    plural: str
    kind: str
    queue: WorkQueue
    workers: int
    namespaced: bool = True
    known: Known | None = None
    """Where the newest of each is kept, if looks take it from there."""


async def work(settings: OperatorSettings, probe: Probe, hear: Callable[[], None]) -> None:
    """Until it is cancelled, or a part of it fails. `hear` takes the signals that end the process."""
    async with KubernetesApi() as api:
        accounts = Accounts(api, settings)
        owner = accounts.client(load_key(Path(settings.owner_key)))
        clock, shared = ServerClock(time.time), Shared()
        known = Known(lambda key: tasks.wake(key))
        limits = Limits(api, known, shared)
        following = Following(lambda key: tasks.wake(key), shared)
        tasks = WorkQueue(TaskController(api, accounts, following, clock.now, limits, known).work, TASK)
        controller = NodeController(api, owner, settings)
        nodes = WorkQueue(controller.work, NODE)
        datasets = WorkQueue(DatasetController(api, accounts, clock.now).work, "Dataset")
        federations = WorkQueue(FederationController(api, owner, settings, clock.now, limits).work, "Federation")
        proposals = WorkQueue(ProposalController(api, owner, settings, clock.now).work, "Proposal")
        watched = [
            Watched(TASKS, TASK, tasks, TASK_WORKERS, known=known),
            Watched(DATASETS, "Dataset", datasets, OTHER_WORKERS),
            Watched(FEDERATIONS, "Federation", federations, 1),
            Watched(PROPOSALS, "Proposal", proposals, OTHER_WORKERS),
        ]
        if settings.watch_nodes:
            watched.append(Watched(NODES, NODE, nodes, NODE_WORKERS, namespaced=False))

        async def begin(objects: int) -> None:
            """Before all tasks are looked at for the first time."""
            if objects < READ_ALL_FROM:
                return
            try:
                await following.read_all(accounts.reader)
            except (TalkooError, TimeoutError) as error:
                log.info("the ledger's tasks are read one by one: %s", error)

        try:
            async with asyncio.TaskGroup() as group:
                for each in watched:
                    group.create_task(each.queue.run(each.workers, FOR_KNOWN if each.known is not None else 0))
                group.create_task(following.run(owner))
                group.create_task(ensure_federation(api, settings))
                if settings.watch_nodes:
                    group.create_task(controller.listen(nodes.wake))
                phases = Phases()
                group.create_task(_resync(api, settings, watched, clock, probe, phases, begin))
                group.create_task(_watch(settings, watched, probe, phases, hear))
        finally:
            await accounts.close()
            await owner.close()


async def _resync(
    api: KubernetesApi,
    settings: OperatorSettings,
    watched: Sequence[Watched],
    clock: ServerClock,
    probe: Probe,
    phases: Phases,
    begin: Callable[[int], Awaitable[None]],
) -> None:
    """List all objects and wake those that have changed, or all where nobody keeps what is known of them.

    It is also what the liveness probe goes by.
    """
    probe.seen()
    begun = False
    while True:
        try:
            clock.learn(await api.date())
            for each in watched:
                listed = await (api.objects(each.plural, _namespaces(settings)) if each.namespaced else api.nodes())
                probe.freshness.listed(each.plural, listed)
                phases.keep(each.kind, {_key(item) for item in listed})
                if each.known is not None and not begun:
                    await begin(len(listed))
                    begun = True
                for item in sorted(_news(each.known, listed), key=_priority, reverse=True):
                    each.queue.wake(_key(item), Lane.ROUTINE)
            probe.seen()
        except TalkooError as error:
            log.warning("the objects cannot be listed: %s", error)
            await asyncio.sleep(RETRY_S)
            continue
        await asyncio.sleep(settings.resync_s)


def _news(known: Known | None, listed: Sequence[Object]) -> list[Object]:
    """What was listed and not known like this."""
    if known is None:
        return list(listed)
    known.keep({_key(item) for item in listed})
    found = [item for item in listed if known.take(item)]
    known.whole = True
    return found


async def _watch(
    settings: OperatorSettings, watched: Sequence[Watched], probe: Probe, phases: Phases, hear: Callable[[], None]
) -> None:
    registry = kopf.OperatorRegistry()
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # else a line for every event of every object

    @kopf.on.login(registry=registry)
    def log_in(**given: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)

    for each in watched:
        _on_event(registry, each, probe, phases)

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.persistence.diffbase_storage = NoDiffs()
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 330

    namespaces = _namespaces(settings)
    others = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=kopf.OperatorSettings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
    )
    hear()  # kopf has just taken the signals for itself, and its own end may take minutes
    await kopf.run_tasks(tasks, ignored=others)


class NoDiffs(kopf.DiffBaseStorage):
    """We are told of events and ask kopf for no differences: so it need not copy every object twice to find them."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return cast(kopf.BodyEssence, {})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        raise AssertionError("nothing is handled that kopf would have to remember")


def _on_event(registry: kopf.OperatorRegistry, each: Watched, probe: Probe, phases: Phases) -> None:
    @kopf.on.event(GROUP, VERSION, each.plural, registry=registry, id=each.plural)
    async def changed(namespace: str | None, name: str | None, event: Any, **_: Any) -> None:
        gone = event["type"] == "DELETED"
        probe.freshness.told(each.plural, event["object"]["metadata"], gone=gone)
        key = namespace or "", name or ""
        phases.heard(each.kind, key, event["type"], event["object"])
        if each.known is None:
            each.queue.wake(key)
        elif gone:
            each.known.gone(key)
            each.queue.wake(key)
        elif each.known.take(event["object"]):  # and not the echo of our own write
            each.queue.wake(key, Lane.NEWS if event["object"].get("status") else Lane.NEW)


def _namespaces(settings: OperatorSettings) -> tuple[str, ...]:
    """None: all. The release's own is always among them: its Federation and Proposals lie there."""
    if not settings.watch_namespaces:
        return ()
    return tuple(dict.fromkeys((*settings.watch_namespaces, settings.namespace)))


def _key(item: Object) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _priority(item: Object) -> int:
    return int(item.get("spec", {}).get("priority", 0))
