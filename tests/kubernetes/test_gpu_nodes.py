"""A node's keeper as a process, against a real API server: heart-beat, status, labels, cordons, and who may say what.

STAND-INS: what the agent reports is written by the test, and a servicer answers in the place of a kubelet. The agent's
own side of the files is under test in tests/agent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from talkoo_api.agent.v1 import node_pb2
from talkoo_api.podresources.v1 import podresources_pb2, podresources_pb2_grpc
from talkoo_operator import heartbeats
from talkoo_operator.api import KubernetesApi
from talkoo_operator.heartbeats import Heartbeats
from talkoo_operator.node_api import NodeApi
from talkoo_operator.node_status import judged

from talkoo_core.errors import Failed
from talkoo_runtime.node_files import ORDERS_FILE, PODS_FILE, REPORT_FILE, read_message, write_message
from talkoo_sim.cluster.binaries import binary
from talkoo_sim.cluster.cluster import Cluster

CHART = Path(__file__).parents[2] / "helm" / "talkoo"
CRD = CHART / "crd-files" / "gpunodes.yaml"
NAMESPACE = "talkoo-nodes"
NODE = "gpu-node-1"
PATIENCE_S = 120.0
"""Generous: a process begins late on a machine that has too much to do."""
UUID = "GPU-bc5610b9"


def until(holds: Callable[[], Any], what: str) -> Any:
    """Poll until `holds` gives something true; that is returned."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"not in {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.2)


class Agent:
    """STAND-IN for the agent: writes its report every half second, as the real one does every second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = node_pb2.NodeReport(
            node_id="tlk1", version="0.1.0", state="ready", reason="Ready", message="the node takes work", kind="cuda"
        )
        gpu = node_pb2.GpuState(uuid=UUID, product_name="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30)
        self.report.gpus.append(gpu)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._stop.wait(0.5):
            self.report.time_ns = time.time_ns()
            write_message(self.folder / REPORT_FILE, self.report)

    @property
    def orders(self) -> node_pb2.NodeOrders:
        return read_message(self.folder / ORDERS_FILE, node_pb2.NodeOrders) or node_pb2.NodeOrders(drain="unread")


class Kept:
    """A Kubernetes node with its agent's files and its keeper."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.agent = cluster, Agent(folder / "shared")
        self.kubelet = folder / "pod-resources"
        self._process: subprocess.Popen[bytes] | None = None

    def start_keeper(self) -> None:
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.cluster.layout.kubeconfig),
            "TALKOO_NODE": NODE,
            "TALKOO_POD": "talkoo-agent-x",
            "TALKOO_NAMESPACE": NAMESPACE,
            "TALKOO_FOLDER": str(self.agent.folder),
            "TALKOO_HEARTBEAT_S": "1",
            "TALKOO_LABEL_NODE": "true",
            "TALKOO_POD_RESOURCES": str(self.kubelet),
        }
        self._process = subprocess.Popen([sys.executable, "-m", "talkoo_operator.keeper"], env=environment)

    def end_keeper(self) -> None:
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(60) == 0

    @property
    def gpu_node(self) -> Any:
        return self.cluster.get("gpunode", NODE)

    @property
    def status(self) -> Any:
        return self.gpu_node.get("status", {})

    @property
    def renewed(self) -> str:
        leases = self.cluster.get("-n", NAMESPACE, "leases")["items"]
        return next((str(each["spec"]["renewTime"]) for each in leases), "")


@pytest.fixture
def kept(control_plane: Cluster, tmp_path: Path) -> Iterator[Kept]:
    made = Kept(control_plane, tmp_path)
    control_plane.apply(yaml.safe_load(CRD.read_text()))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/gpunodes.talkoo.dev")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    control_plane.apply(namespace, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    control_plane.apply({"apiVersion": "talkoo.dev/v1alpha1", "kind": "GPUNode", "metadata": {"name": NODE}})
    made.agent.folder.mkdir()
    made.agent.start()
    made.start_keeper()
    try:
        yield made
    finally:
        made.end_keeper()
        made.agent.stop()
        control_plane.kubectl("delete", f"gpunode/{NODE}", f"node/{NODE}", "--ignore-not-found")


def test_a_gpu_node_says_what_its_agent_says_and_is_written_only_when_that_changes(kept: Kept) -> None:
    """The heart-beat is a Lease; nothing else moves while nothing happens."""
    status = until(lambda: kept.status.get("devices") and kept.status, "the devices")
    assert (status["devices"][0]["productName"], status["devices"][0]["memory"]) == ("NVIDIA H100 80GB HBM3", "81920Mi")
    assert (status["agent"]["state"], status["cordoned"], status["capacity"]["gpus"]) == ("Ready", False, 1)
    found = kept.gpu_node["metadata"]
    assert found["labels"]["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert [(owner["kind"], owner["name"]) for owner in found["ownerReferences"]] == [("Node", NODE)]
    core = until(lambda: kept.cluster.get("node", NODE)["metadata"].get("labels"), "the core node's labels")
    assert core["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"

    first = until(lambda: kept.renewed, "the Lease")
    second = until(lambda: kept.renewed != first and kept.renewed, "a beat")
    until(lambda: kept.renewed not in (first, second), "another beat")
    assert kept.gpu_node["metadata"]["resourceVersion"] == found["resourceVersion"]
    (lease,) = kept.cluster.get("-n", NAMESPACE, "leases")["items"]
    assert lease["metadata"]["ownerReferences"][0]["uid"] == found["uid"]
    assert lease["spec"]["holderIdentity"] == "talkoo-agent-x"

    held = node_pb2.HeldShard(task_id="task-1", attempt=2, rank=1, stage="training", card=UUID)
    kept.agent.report.shards.append(held)
    until(lambda: kept.status["shards"] == [{"task": "task-1", "attempt": 2, "rank": 1, "card": UUID}], "the shard")
    del kept.agent.report.shards[:]
    until(lambda: kept.status["shards"] == [], "no shard")


def test_a_cordon_reaches_the_agent_and_so_does_what_an_administrator_wants(kept: Kept) -> None:
    until(lambda: kept.agent.orders.drain == "", "the first orders")
    kept.cluster.kubectl("cordon", NODE)
    until(lambda: kept.agent.orders.hand_back, "the order to hand back")
    assert kept.agent.orders.drain == "its Kubernetes node is cordoned"
    until(lambda: kept.status.get("cordoned"), "the cordon in the status")

    kept.end_keeper()  # one that begins anew lets the orders stand
    kept.start_keeper()
    kept.cluster.kubectl("uncordon", NODE)
    until(lambda: kept.agent.orders == node_pb2.NodeOrders(), "the end of the cordon")

    patch = {"spec": {"unschedulable": True, "reason": "new fans", "priceUtlkPerGflop": 5}}
    kept.cluster.kubectl("patch", "gpunode", NODE, "--type=merge", "-p", json.dumps(patch))
    until(lambda: kept.agent.orders.drain == "new fans", "the administrator's order")
    assert kept.agent.orders.price_utlk_per_gflop == 5
    with pytest.raises(Failed, match="set unschedulable to true or remove the reason"):
        kept.cluster.kubectl("patch", "gpunode", NODE, "--type=merge", "-p", '{"spec":{"unschedulable":false}}')
    kept.cluster.kubectl("patch", "gpunode", NODE, "--type=json", "-p", '[{"op":"remove","path":"/spec"}]')
    until(lambda: kept.agent.orders == node_pb2.NodeOrders(), "no order")


@pytest.fixture
async def node_api(control_plane: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeApi]:
    where = "kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(where, str(control_plane.layout.kubeconfig))
    async with KubernetesApi() as api:
        yield NodeApi(api, NAMESPACE)


async def test_a_silent_agent_means_no_heart_beat_and_the_operator_hears_it(
    kept: Kept, node_api: NodeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper lives on; what counts is the agent."""
    import asyncio

    monkeypatch.setattr(heartbeats, "LOOK_S", 0.5)
    ear, told = Heartbeats(node_api), []
    listening = asyncio.create_task(ear.run(told.append))
    try:
        await asyncio.to_thread(until, lambda: ear.heard(NODE), "the heart-beat")
        assert judged({"metadata": {"generation": 1}, "status": kept.status}, True, "now")["phase"] == "Joining"
        kept.agent.stop()
        await asyncio.to_thread(until, lambda: ear.heard(NODE) is False, "the silence")
        kept.agent.start()
        await asyncio.to_thread(until, lambda: ear.heard(NODE), "the heart-beat again")
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    assert told == [NODE, NODE, NODE]


class Kubelet(podresources_pb2_grpc.PodResourcesListerServicer):
    """STAND-IN for a kubelet: one pod has the card, in two of its shares; another has a disk."""

    def List(self, request: Any, context: Any) -> podresources_pb2.ListPodResourcesResponse:  # noqa: N802
        def pod(name: str, resource: str, *ids: str) -> podresources_pb2.PodResources:
            devices = podresources_pb2.ContainerDevices(resource_name=resource, device_ids=ids)
            container = podresources_pb2.ContainerResources(name="main", devices=[devices])
            return podresources_pb2.PodResources(name=name, namespace="lab", containers=[container])

        pods = [pod("trainer", "nvidia.com/gpu", f"{UUID}::0", f"{UUID}::1"), pod("other", "example.com/disk", "d-1")]
        return podresources_pb2.ListPodResourcesResponse(pod_resources=pods)


def test_the_kubelet_tells_which_pod_has_the_card(kept: Kept) -> None:
    """The keeper was there first: it asks again until the kubelet answers."""
    kept.kubelet.mkdir()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    podresources_pb2_grpc.add_PodResourcesListerServicer_to_server(Kubelet(), server)
    server.add_insecure_port(f"unix:{kept.kubelet}/kubelet.sock")
    server.start()
    try:
        pods = until(lambda: read_message(kept.agent.folder / PODS_FILE, node_pb2.GpuPods), "the pods")
    finally:
        server.stop(0).wait()
    assert {uuid: (holder.namespace, holder.pod) for uuid, holder in pods.by_device.items()} == {
        UUID: ("lab", "trainer")
    }


def chart_objects(kinds: set[str]) -> list[dict[str, Any]]:
    """What the chart grants to agents, as helm renders it."""
    command = [str(binary("helm")), "template", "talkoo", str(CHART), "-n", NAMESPACE]
    options = ["-s", "templates/agents.yaml", "--set", "agents.labelNodes=true"]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True, timeout=60)
    made = [each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] in kinds]
    for each in made:
        if each["kind"] in ("Role", "RoleBinding", "ServiceAccount"):
            each["metadata"]["namespace"] = NAMESPACE
    return made


def test_an_agent_speaks_for_its_own_node_and_does_not_judge_it(kept: Kept) -> None:
    policies = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    kept.cluster.apply(*chart_objects({"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"} | policies))
    agent = f"system:serviceaccount:{NAMESPACE}:talkoo-agent"
    # kubectl reads what it patches; a keeper does not, and has no such right.
    reads = ["create", "clusterrole", "reads-statuses", "--verb=get", "--resource=gpunodes/status"]
    kept.cluster.kubectl(*reads, "--save-config")
    binds = ["create", "clusterrolebinding", "reads-statuses", "--clusterrole=reads-statuses"]
    kept.cluster.kubectl(*binds, f"--serviceaccount={NAMESPACE}:talkoo-agent")

    def says(command: str, patch: dict[str, Any], node: str = NODE) -> str:
        who = [f"--as={agent}", f"--as-user-extra=authentication.kubernetes.io/node-name={node}"]
        words = ["patch", *command.split(), "--type=merge", "-p", json.dumps(patch), "-n", NAMESPACE]
        try:
            return kept.cluster.kubectl(*words, *who)
        except Failed as error:
            return error.message

    until(lambda: kept.renewed, "the Lease")
    own = "an agent may speak for the node it runs on only"
    state = {"status": {"agent": {"state": "Ready"}}}
    # The policy counts some seconds after it was made.
    until(lambda: own in says(f"gpunode {NODE} --subresource=status", state, "other"), "the policy")
    assert "patched" in says(f"gpunode {NODE} --subresource=status", state)
    assert "patched" in says(f"gpunode {NODE}", {"metadata": {"labels": {"talkoo.dev/device": "cpu"}}})
    assert "patched" in says(f"node {NODE}", {"metadata": {"labels": {"talkoo.dev/device": "cpu"}}})
    judges = {"status": {"phase": "Ready", "conditions": []}}
    assert "may not judge its node" in says(f"gpunode {NODE} --subresource=status", judges)
    certifies = {"status": {"certificate": "mine"}}
    assert "may not judge its node" in says(f"gpunode {NODE} --subresource=status", certifies)
    wants = {"spec": {"priceUtlkPerGflop": 1}}
    assert "may not change what is wanted" in says(f"gpunode {NODE}", wants)
    assert "may not change what is wanted" in says(f"node {NODE}", {"spec": {"unschedulable": True}})
    assert own in says(f"node {NODE}", {"metadata": {"labels": {"a": "b"}}}, "other")
    assert own in says(f"gpunode {NODE}", {"metadata": {"labels": {"a": "b"}}}, "")
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "gpunode-other"}}
    who = [f"--as={agent}", f"--as-user-extra=authentication.kubernetes.io/node-name={NODE}"]
    with pytest.raises(Failed, match=own):
        kept.cluster.kubectl("create", "-n", NAMESPACE, "-f", "-", *who, stdin=json.dumps(lease))


def test_the_chart_and_the_agent_agree_on_the_folder() -> None:
    """The keeper, the agent's preStop hook and its settings name the same one; and the sidecar ends last."""
    (daemons,) = chart_objects({"DaemonSet"})
    pod = daemons["spec"]["template"]["spec"]
    keeper = next(each for each in pod["initContainers"] if each["name"] == "keeper")
    assert keeper["restartPolicy"] == "Always"
    folder = next(each["value"] for each in keeper["env"] if each["name"] == "TALKOO_FOLDER")
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[hook.index("--folder") + 1] == folder
    assert int(hook[hook.index("--wait-s") + 1]) < pod["terminationGracePeriodSeconds"]
