"""The calls to the Kubernetes API that GPUNodes need besides those of `api`: Leases, the core node, watches."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import ClientError
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.watch import Watch

from talkoo_core.errors import NotFound, Unavailable
from talkoo_operator.api import GROUP, MERGE_PATCH, NODES, VERSION, KubernetesApi, called

Object = dict[str, Any]
LEASE_PREFIX = "gpunode-"
LEASE_LABEL = "talkoo.dev/heartbeat"
WATCH_S = 300
"""A watch is opened anew so often, whatever the connection says."""


def now_micro() -> str:
    """As a Lease's times are written."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class NodeApi:
    """What a node's keeper and the operator ask for. `namespace` is the release's: Leases lie there."""

    def __init__(self, api: KubernetesApi, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._leases: Any = client.CoordinationV1Api(api.client)
        self._version = ""
        """Of our Lease, as the last beat left it."""

    async def beat(self, node: Object, holder: str, duration_s: int) -> None:
        """Renew the Lease of a GPUNode with one call, as a kubelet does; it goes when the GPUNode goes."""
        name = LEASE_PREFIX + node["metadata"]["name"]
        owner = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "GPUNode", "name": node["metadata"]["name"]}
        metadata: Object = {
            "name": name,
            "labels": {LEASE_LABEL: "gpunode"},
            "ownerReferences": [{**owner, "uid": node["metadata"]["uid"]}],
        }
        spec = {"holderIdentity": holder, "leaseDurationSeconds": duration_s, "renewTime": now_micro()}
        version, self._version = self._version or await self._read_version(name), ""
        if version:
            metadata["resourceVersion"] = version
            call = self._leases.replace_namespaced_lease(name, self._namespace, {"metadata": metadata, "spec": spec})
        else:
            call = self._leases.create_namespaced_lease(self._namespace, {"metadata": metadata, "spec": spec})
        self._version = (await called(call)).metadata.resource_version

    async def _read_version(self, name: str) -> str:
        """Empty when there is none. Asked at the first beat, and after one that failed."""
        try:
            found = await called(self._leases.read_namespaced_lease(name, self._namespace))
        except NotFound:
            return ""
        return str(found.metadata.resource_version)

    async def beats(self) -> dict[str, tuple[str, int]]:
        """Of each node its last renewal, as written, and for how many seconds that counts."""
        call = self._leases.list_namespaced_lease(self._namespace, label_selector=f"{LEASE_LABEL}=gpunode")
        listed = await called(call)
        return {
            lease.metadata.name.removeprefix(LEASE_PREFIX): (
                str(lease.spec.renew_time),
                int(lease.spec.lease_duration_seconds or 0),
            )
            for lease in listed.items
            if lease.spec is not None and lease.spec.renew_time is not None
        }

    async def core_node(self, name: str) -> Object:
        """The Kubernetes node. Raises NotFound."""
        found = await called(self._api.core.read_node(name))
        return dict(self._api.client.sanitize_for_serialization(found))

    async def label_core_node(self, name: str, labels: dict[str, str | None]) -> None:
        await called(self._api.core.patch_node(name, {"metadata": {"labels": labels}}, _content_type=MERGE_PATCH))

    async def patch_node(self, name: str, metadata: Object) -> Object:
        """A GPUNode's metadata."""
        call = self._api.custom.patch_cluster_custom_object(
            GROUP, VERSION, NODES, name, {"metadata": metadata}, _content_type=MERGE_PATCH
        )
        return await called(call)

    async def watch_core_node(self, name: str) -> AsyncIterator[Object]:
        """The Kubernetes node now and after each change, until the watch ends. Raises Unavailable."""
        async for found in _watched(self._api.core.list_node, name):
            yield found

    async def watch_node(self, name: str) -> AsyncIterator[Object]:
        """Likewise the GPUNode."""
        listing = self._api.custom.list_cluster_custom_object
        async for found in _watched(listing, name, GROUP, VERSION, NODES):
            yield found


async def _watched(listing: Any, name: str, *arguments: str) -> AsyncIterator[Object]:
    """Without a version to begin from, the API server sends the present state first."""
    async with Watch(return_type=object) as watch:  # type: ignore[no-untyped-call]
        selector = f"metadata.name={name}"
        try:
            async for event in watch.stream(listing, *arguments, field_selector=selector, timeout_seconds=WATCH_S):
                # Of a connection that is cut, the last line may be half an event: the next watch brings it again.
                if isinstance(event, dict) and event["type"] in ("ADDED", "MODIFIED"):
                    yield event["raw_object"]
        except (ApiException, ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"the watch of {name} broke: {error}", code="api_server_away") from None
