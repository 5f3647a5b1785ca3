"""Names of our resources, and the few calls to the Kubernetes API that we make, with our own errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from aiohttp import ClientError
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from talkoo_core.errors import Conflict, Failed, InvalidInput, NotFound, PermissionDenied, Unavailable
from talkoo_operator.shared import Shared

GROUP = "talkoo.dev"
VERSION = "v1alpha1"
TASKS = "trainingtasks"
NODES = "gpunodes"
MODELS = "modelversions"
DATASETS = "datasets"
FEDERATIONS = "federations"
PROPOSALS = "proposals"
MERGE_PATCH = "application/merge-patch+json"
CALL_TIMEOUT_S = 15.0
PAGE = 250
"""Objects in one answer to a list."""
FIELD_MANAGER = "talkoo-operator"
API_SERVER_AWAY = "api_server_away"
"""Code of an Unavailable that is about the API server and not about the ledger."""

T = TypeVar("T")
Object = dict[str, Any]


class KubernetesApi:
    """Use as `async with`. Inside a pod it takes the pod's service account, else the caller's kubeconfig."""

    def __init__(self) -> None:
        self.client: Any = None
        self._shared = Shared()
        """For what many objects of a namespace ask for at the same time."""

    async def __aenter__(self) -> KubernetesApi:
        try:
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        except config.ConfigException:
            await config.load_kube_config()  # type: ignore[no-untyped-call]
        self.client = api_client()
        # Plain dicts go in, where the generated types ask for one class of each kind.
        self.core: Any = client.CoreV1Api(self.client)
        self.custom: Any = client.CustomObjectsApi(self.client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    # -- our resources -----------------------------------------------------------------------------------------------

    async def patch_object(self, plural: str, namespace: str, name: str, change: Object) -> Object:
        """Metadata and spec; a `resourceVersion` in it makes the API server refuse it when somebody was quicker."""
        call = self.custom.patch_namespaced_custom_object(
            GROUP, VERSION, namespace, plural, name, change, _content_type=MERGE_PATCH
        )
        return await called(call)

    async def delete_task(self, task: Object) -> None:
        """As it was seen: Conflict when it has changed since. An absent one is fine."""
        meta = task["metadata"]
        seen = {"preconditions": {"resourceVersion": meta["resourceVersion"]}}
        call = self.custom.delete_namespaced_custom_object(
            GROUP, VERSION, meta["namespace"], TASKS, meta["name"], body=seen
        )
        try:
            await called(call)
        except NotFound:
            return

    async def objects(self, plural: str, namespaces: tuple[str, ...]) -> list[Object]:
        """All of one kind in these namespaces, or in all."""
        listing = self.custom.list_namespaced_custom_object
        found: list[Object] = []
        for one in namespaces:
            found += await self._pages(listing, one, plural)
        return found if namespaces else await self._pages(self.custom.list_cluster_custom_object, plural)

    async def _pages(self, listing: Any, *about: str) -> list[Object]:
        """A page at a time: between two of them whatever else happened is heard."""
        found: list[Object] = []
        more: dict[str, str] = {}
        while True:
            page = await called(listing(GROUP, VERSION, *about, limit=PAGE, **more))
            found += page["items"]
            if not page["metadata"].get("continue"):
                return found
            more = {"_continue": page["metadata"]["continue"]}

    async def task_keys(self, namespaces: tuple[str, ...]) -> list[tuple[str, str]]:
        """Namespace and name of every TrainingTask in these namespaces, or in all."""
        found = await self.objects(TASKS, namespaces)
        return [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in found]

    async def node_names(self) -> list[str]:
        """Of all GPUNodes."""
        return [item["metadata"]["name"] for item in await self.nodes()]

    async def object(self, plural: str, namespace: str, name: str) -> Object:
        """One of our namespaced resources. Raises NotFound."""
        return await called(self.custom.get_namespaced_custom_object(GROUP, VERSION, namespace, plural, name))

    async def ensure_object(self, plural: str, namespace: str, body: Object) -> None:
        """Create it unless it is there."""
        try:
            await called(self.custom.create_namespaced_custom_object(GROUP, VERSION, namespace, plural, body))
        except Conflict:
            return

    async def patch_object_status(self, plural: str, about: Object, status: Object) -> Object:
        """A merge patch of the status of what was seen; Conflict when it has changed since."""
        meta = about["metadata"]
        body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": status}
        call = self.custom.patch_namespaced_custom_object_status(
            GROUP, VERSION, meta["namespace"], plural, meta["name"], body, _content_type=MERGE_PATCH
        )
        return await called(call)

    async def annotations(self, namespace: str) -> dict[str, str]:
        """Of a Namespace. Raises NotFound."""

        async def read() -> dict[str, str]:
            return dict((await called(self.core.read_namespace(namespace))).metadata.annotations or {})

        return await self._shared.read(("namespace", namespace), read)

    async def date(self) -> str:
        """The API server's time, as HTTP writes it."""
        answer: Any = await called(client.VersionApi(self.client).get_code_with_http_info())
        return str(answer.headers["Date"])

    async def nodes(self) -> list[Object]:
        """All GPUNodes."""
        return await self._pages(self.custom.list_cluster_custom_object, NODES)

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

        async def read() -> dict[str, bytes]:
            found = await called(self.core.read_namespaced_secret(name, namespace))
            return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}

        return await self._shared.read(("secret", namespace, name), read)

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

        async def read() -> dict[str, bytes]:
            found = await called(self.core.read_namespaced_config_map(name, namespace))
            text = {key: value.encode() for key, value in (found.data or {}).items()}
            return text | {key: base64.b64decode(value) for key, value in (found.binary_data or {}).items()}

        return await self._shared.read(("config map", namespace, name), read)

    async def create_config_map(self, namespace: str, name: str, data: Mapping[str, str], labels: Object) -> None:
        """Raises Conflict when it is there."""
        body = {"metadata": {"name": name, "labels": labels}, "data": dict(data)}
        await called(self.core.create_namespaced_config_map(namespace, body))

    async def patch_config_map(self, namespace: str, name: str, data: Mapping[str, str]) -> None:
        """These entries are new; others stay. Raises NotFound."""
        await called(self.core.patch_namespaced_config_map(name, namespace, {"data": dict(data)}))

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


def api_client() -> Any:
    """By the configuration that was loaded.

    Without `trust_env`: else aiohttp looks for a .netrc and for proxies before each request, in a thread. A proxy that
    the kubeconfig names is used; kopf's watches know no other one either.
    """
    settings = client.Configuration.get_default_copy()
    settings.client_session_kwargs = {"trust_env": False}
    return client.ApiClient(settings)


async def called(call: Awaitable[T]) -> T:
    """Await a call to the API server; its status becomes one of our error families."""
    import asyncio

    try:
        return await asyncio.wait_for(call, CALL_TIMEOUT_S)
    except ApiException as error:
        raise _error_of(error) from None
    except (ClientError, TimeoutError, OSError) as error:
        raise Unavailable(f"the Kubernetes API server cannot be reached: {error}", code=API_SERVER_AWAY) from None


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
    }
    status = int(error.status or 0)
    if status in kinds:
        return kinds[status](message)
    if status == 0 or status == 429 or status >= 500:  # of 429 the API server says itself: later
        return Unavailable(f"the Kubernetes API server does not answer now: {message}", code=API_SERVER_AWAY)
    return Failed(message)


def _now() -> str:
    import datetime

    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
