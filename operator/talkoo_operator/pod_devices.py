"""Which pod has which GPU, as the kubelet of this node tells (its PodResources API)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import grpc
from talkoo_api.agent.v1 import node_pb2
from talkoo_api.podresources.v1 import podresources_pb2, podresources_pb2_grpc

from talkoo_core.errors import Unavailable

SOCKET = "kubelet.sock"
CALL_TIMEOUT_S = 5.0
ANSWER_MAX_BYTES = 16 << 20
VENDOR = "nvidia.com/"


async def ask_kubelet(folder: Path) -> node_pb2.GpuPods:
    """Raises Unavailable (code `no_kubelet`)."""
    path = folder / SOCKET
    options = [("grpc.max_receive_message_length", ANSWER_MAX_BYTES)]
    async with grpc.aio.insecure_channel(f"unix:{path}", options) as channel:  # a socket on this node, of root only
        stub = podresources_pb2_grpc.PodResourcesListerStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = await stub.List(podresources_pb2.ListPodResourcesRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"the kubelet does not answer at {path}: {error.details()}", code="no_kubelet") from None
    return holders(answer.pod_resources)


def holders(pods: Iterable[podresources_pb2.PodResources]) -> node_pb2.GpuPods:
    """By the device's UUID. A card shared by time-slicing has one name for each share (`GPU-…::3`); one pod is told."""
    found = node_pb2.GpuPods()
    for pod in sorted(pods, key=lambda pod: (pod.namespace, pod.name)):
        for container in pod.containers:
            for devices in container.devices:
                if not devices.resource_name.startswith(VENDOR):
                    continue
                for device in devices.device_ids:
                    uuid = device.partition("::")[0]
                    if uuid not in found.by_device:
                        found.by_device[uuid].CopyFrom(node_pb2.GpuPods.Holder(namespace=pod.namespace, pod=pod.name))
    return found
