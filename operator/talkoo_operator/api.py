"""Names of our resources, and the few calls to the Kubernetes API that we make, with our own errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from aiohttp import ClientError
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from talkoo_core.errors import Conflict, Exhausted, Failed, InvalidInput, NotFound, PermissionDenied, Unavailable

GROUP = "talkoo.dev"
VERSION = "v1alpha1"
TASKS = "trainingtasks"
NODES = "gpunodes"
MODELS = "modelversions"
MERGE_PATCH = "application/merge-patch+json"
CALL_TIMEOUT_S = 15.0
FIELD_MANAGER = "talkoo-operator"

T = TypeVar("T")
Object = dict[str, Any]


class KubernetesApi:
    """Use as `async with`. Inside a pod it takes the pod's service account, else the caller's kubeconfig."""

    def __init__(self) -> None:
        self.client: Any = None

    async def __aenter__(self) -> KubernetesApi:
        try:
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        except config.ConfigException:
            await config.load_kube_config()  # type: ignore[no-untyped-call]
        self.client = client.ApiClient()
        # Plain dicts go in, where the generated types ask for one class of each kind.
        self.core: Any = client.CoreV1Api(self.client)
        self.custom: Any = client.CustomObjectsApi(self.client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    # -- our resources -----------------------------------------------------------------------------------------------

    async def task(self, namespace: str, name: str) -> Object:
        """Raises NotFound."""
        return await called(self.custom.get_namespaced_custom_object(GROUP, VERSION, namespace, TASKS, name))

    async def patch_task(self, namespace: str, name: str, change: Object) -> Object:
        """Metadata and spec; a `resourceVersion` in it makes the API server refuse it when somebody was quicker."""
        call = self.custom.patch_namespaced_custom_object(
            GROUP, VERSION, namespace, TASKS, name, change, _content_type=MERGE_PATCH
        )
        return await called(call)

    async def patch_task_status(self, namespace: str, name: str, status: Object, resource_version: str = "") -> Object:
        """With a `resource_version`, Conflict when the object has changed since."""
        body: Object = {"status": status}
        if resource_version:
            body["metadata"] = {"resourceVersion": resource_version}
        call = self.custom.patch_namespaced_custom_object_status(
            GROUP, VERSION, namespace, TASKS, name, body, _content_type=MERGE_PATCH
        )
        return await called(call)

    async def delete_task(self, namespace: str, name: str) -> None:
        """An absent one is fine."""
        try:
            await called(self.custom.delete_namespaced_custom_object(GROUP, VERSION, namespace, TASKS, name))
        except NotFound:
            return

    async def task_keys(self, namespaces: tuple[str, ...]) -> list[tuple[str, str]]:
        """Namespace and name of every TrainingTask in these namespaces, or in all."""
        if namespaces:
            calls = [self.custom.list_namespaced_custom_object(GROUP, VERSION, one, TASKS) for one in namespaces]
        else:
            calls = [self.custom.list_cluster_custom_object(GROUP, VERSION, TASKS)]
        found = [item for call in calls for item in (await called(call))["items"]]
        return [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in found]

    async def node_names(self) -> list[str]:
        """Of all GPUNodes."""
        listed = await called(self.custom.list_cluster_custom_object(GROUP, VERSION, NODES))
        return [item["metadata"]["name"] for item in listed["items"]]

    async def ensure_model(self, namespace: str, model: Object) -> None:
        """Create a ModelVersion unless it is there."""
        try:
            await called(self.custom.create_namespaced_custom_object(GROUP, VERSION, namespace, MODELS, model))
        except Conflict:
            return

    async def node(self, name: str) -> Object:
        """A GPUNode. Raises NotFound."""
        return await called(self.custom.get_cluster_custom_object(GROUP, VERSION, NODES, name))

    async def ensure_node(self, node: Object) -> None:
        try:
            await called(self.custom.create_cluster_custom_object(GROUP, VERSION, NODES, node))
        except Conflict:
            return

    async def patch_node_status(self, name: str, status: Object) -> Object:
        call = self.custom.patch_cluster_custom_object_status(
            GROUP, VERSION, NODES, name, {"status": status}, _content_type=MERGE_PATCH
        )
        return await called(call)

    # -- secrets and configuration -----------------------------------------------------------------------------------

    async def secret(self, namespace: str, name: str) -> dict[str, bytes]:
        """Raises NotFound."""
        found = await called(self.core.read_namespaced_secret(name, namespace))
        return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}

    async def write_secret(
        self, namespace: str, name: str, data: Mapping[str, bytes], labels: Object, *, new: bool
    ) -> None:
        """Create (`new`; Conflict when it is there) or replace its data."""
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        if new:
            body = {"metadata": {"name": name, "labels": labels}, "type": "Opaque", "data": encoded}
            await called(self.core.create_namespaced_secret(namespace, body))
        else:
            await called(self.core.patch_namespaced_secret(name, namespace, {"data": encoded}))

    async def config_map(self, namespace: str, name: str) -> dict[str, bytes]:
        """Text and binary entries alike. Raises NotFound."""
        found = await called(self.core.read_namespaced_config_map(name, namespace))
        text = {key: value.encode() for key, value in (found.data or {}).items()}
        return text | {key: base64.b64decode(value) for key, value in (found.binary_data or {}).items()}

    async def create_config_map(self, namespace: str, name: str, data: Mapping[str, str], labels: Object) -> None:
        """Raises Conflict when it is there."""
        body = {"metadata": {"name": name, "labels": labels}, "data": dict(data)}
        await called(self.core.create_namespaced_config_map(namespace, body))

    async def event(self, about: Object, kind: str, reason: str, message: str) -> None:
        """`kind` is Normal or Warning."""
        meta = about["metadata"]
        namespace = meta.get("namespace", "default")
        now = _now()
        body = {
            "metadata": {"generateName": f"{meta['name'][:50]}-", "namespace": namespace},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": meta["name"],
                "namespace": meta.get("namespace"),
                "uid": meta["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": f"{GROUP}/operator",
        }
        await called(self.core.create_namespaced_event(namespace, body))


async def called(call: Awaitable[T]) -> T:
    """Await a call to the API server; its status becomes one of our error families."""
    import asyncio

    try:
        return await asyncio.wait_for(call, CALL_TIMEOUT_S)
    except ApiException as error:
        raise _error_of(error) from None
    except (ClientError, TimeoutError, OSError) as error:
        raise Unavailable(f"the Kubernetes API server cannot be reached: {error}", code="api_server_away") from None


def _error_of(error: Any) -> Exception:
    try:
        message = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        message = str(error.reason)
    kinds: dict[int, type[Exception]] = {
        400: InvalidInput,
        401: PermissionDenied,
        403: PermissionDenied,
        404: NotFound,
        409: Conflict,
        422: InvalidInput,
        429: Exhausted,
    }
    status = int(error.status or 0)
    if status in kinds:
        return kinds[status](message)
    return Unavailable(message) if status >= 500 or status == 0 else Failed(message)


def _now() -> str:
    import datetime

    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
