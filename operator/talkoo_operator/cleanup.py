"""`python -m talkoo_operator.cleanup`: what an uninstallation would leave behind, taken away before it.

The operator stops first: nobody else would remove its finalizer once it is gone, and it would add it again while it
lives. Keys are money: they stay, unless it is said that they shall go.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import Any

import msgspec
from kubernetes.aio import client

from talkoo_core.errors import Conflict, NotFound, Unavailable
from talkoo_operator.api import GROUP, MERGE_PATCH, NODES, TASKS, VERSION, KubernetesApi, called
from talkoo_operator.node_api import LEASE_PREFIX
from talkoo_operator.once import run_once
from talkoo_operator.plan import FINALIZER

STOP_TIMEOUT_S = 60.0
POLL_S = 0.5
MAX_TRIES = 5
"""For one object that somebody else changes at the same time."""
IDENTITY = "talkoo-identity"


class CleanupSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which release goes, and how much of it."""

    namespace: str
    release: str
    watch_namespaces: tuple[str, ...] = ()
    """Where its operator looked after TrainingTasks; none: in all namespaces."""
    agents: bool = True
    """Whether its agents made GPUNodes, which go with them."""
    delete_secrets: bool = False
    """Keys, certificates, accounts' tokens with them, and the genesis in the release's own namespace go, too."""


class Cleanup:
    """May be run again at any time, also after a crash in its middle."""

    def __init__(self, api: KubernetesApi, settings: CleanupSettings) -> None:
        self._api = api
        self._settings = settings

    async def run(self) -> list[str]:
        """What was done, in words. Raises Unavailable when the operator does not stop."""
        done: list[str] = []
        await self._stop_operator()
        for namespace, name in await self._api.task_keys(self._settings.watch_namespaces):
            if await self._release(namespace, name):
                done.append(f"TrainingTask {namespace}/{name} is released")
        if self._settings.agents:
            for name in await self._api.node_names():
                await _gone(self._api.custom.delete_cluster_custom_object(GROUP, VERSION, NODES, name))
                done.append(f"GPUNode {name} is deleted")
        await self._delete_leases()
        if self._settings.delete_secrets:
            done += await self._delete_secrets()
        return done

    async def _stop_operator(self) -> None:
        release, namespace = self._settings.release, self._settings.namespace
        apps: Any = client.AppsV1Api(self._api.client)
        scaled = {"spec": {"replicas": 0}}
        try:
            await called(
                apps.patch_namespaced_deployment_scale(
                    f"{release}-operator", namespace, scaled, _content_type=MERGE_PATCH
                )
            )
        except NotFound:
            return
        selector = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=operator"
        deadline = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        while (await called(self._api.core.list_namespaced_pod(namespace, label_selector=selector))).items:
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"the operator's pods are still there after {STOP_TIMEOUT_S:.0f} s; delete them and try again",
                    code="operator_runs",
                )
            await asyncio.sleep(POLL_S)

    async def _release(self, namespace: str, name: str) -> bool:
        """Whether our finalizer was there. Those of others stay."""
        for _ in range(MAX_TRIES):
            try:
                meta = (await self._task(namespace, name))["metadata"]
                if FINALIZER not in meta.get("finalizers", ()):
                    return False
                kept = [each for each in meta["finalizers"] if each != FINALIZER]
                change = {"metadata": {"finalizers": kept, "resourceVersion": meta["resourceVersion"]}}
                await self._api.patch_object(TASKS, namespace, name, change)
                return True
            except NotFound:
                return False
            except Conflict:
                continue
        raise Unavailable(f"TrainingTask {namespace}/{name} changes all the time; try again", code="busy_object")

    async def _task(self, namespace: str, name: str) -> dict[str, Any]:
        """Read by a list: this Job may not do more than it needs."""
        listed = await called(
            self._api.custom.list_namespaced_custom_object(
                GROUP, VERSION, namespace, TASKS, field_selector=f"metadata.name={name}"
            )
        )
        if not listed["items"]:
            raise NotFound(f"there is no TrainingTask {namespace}/{name}")
        found: dict[str, Any] = listed["items"][0]
        return found

    async def _delete_leases(self) -> None:
        """The operator's, and those by which agents show that they live."""
        release, namespace = self._settings.release, self._settings.namespace
        leases: Any = client.CoordinationV1Api(self._api.client)
        for lease in (await called(leases.list_namespaced_lease(namespace))).items:
            name = lease.metadata.name
            if name == f"{release}-operator" or (self._settings.agents and name.startswith(LEASE_PREFIX)):
                await _gone(leases.delete_namespaced_lease(name, namespace))

    async def _delete_secrets(self) -> list[str]:
        release, namespace = self._settings.release, self._settings.namespace
        selector = f"app.kubernetes.io/instance={release},app.kubernetes.io/managed-by={IDENTITY}"
        found = (await called(self._api.core.list_namespaced_secret(namespace, label_selector=selector))).items
        for secret in found:
            await _gone(self._api.core.delete_namespaced_secret(secret.metadata.name, namespace))
        for name in ("federation", "card", "invitation", "application"):
            await _gone(self._api.core.delete_namespaced_config_map(f"{release}-{name}", namespace))
        return [f"Secret {secret.metadata.name} is deleted" for secret in found]


async def _gone(call: Awaitable[Any]) -> None:
    """What is not there need not be deleted."""
    try:
        await called(call)
    except NotFound:
        return


async def _work(settings: CleanupSettings) -> None:
    async with KubernetesApi() as api:
        done = await Cleanup(api, settings).run()
    sys.stdout.write("\n".join(done) + "\n" if done else "there was nothing to take away\n")


if __name__ == "__main__":
    sys.exit(run_once("talkoo_operator.cleanup", __doc__, CleanupSettings, _work))
