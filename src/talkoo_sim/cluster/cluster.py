"""Bring a cluster up, restart its parts, and take it away without leaving anything, also after a kill −9."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from talkoo_core.errors import Conflict, Failed, InvalidInput, TalkooError, Unavailable
from talkoo_sim.cluster import cert_manager, control_plane, fake_nodes, metrics_server, prometheus_operator
from talkoo_sim.cluster.addons import addons
from talkoo_sim.cluster.binaries import kubectl
from talkoo_sim.cluster.certificates import ClusterAuthority
from talkoo_sim.cluster.commands import run
from talkoo_sim.cluster.groups import end_group, join_group, make_group
from talkoo_sim.cluster.images import import_own_images
from talkoo_sim.cluster.layout import Layout
from talkoo_sim.cluster.network import inside_namespace, make_network, remove_network, write_cni
from talkoo_sim.cluster.nodes import containerd_command, kubelet_command
from talkoo_sim.cluster.policies import enforced, enforcer_command

START_TIMEOUT_S = 90.0
POLL_S = 0.2
PARTS_FILE = "parts.json"
KEPT_LOG_CHARACTERS = 2_000
NODES_AT_ONCE = 200


class Cluster:
    """A running cluster, or one to bring up; `parts` are its processes on this machine."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    # -- for whoever uses it -----------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60.0) -> str:
        """What kubectl printed. Raises Failed with its own words."""
        return run([kubectl(), f"--kubeconfig={self.layout.kubeconfig}", *arguments], stdin=stdin, timeout_s=timeout_s)

    def account_kubeconfig(self, path: Path, namespace: str, account: str) -> Path:
        """A client configuration of a service account, for an hour, at `path`."""
        document = json.loads(self.layout.kubeconfig.read_text())
        token = self.kubectl("-n", namespace, "create", "token", account, "--duration=1h").strip()
        document["users"][0]["user"] = {"token": token}
        path.write_text(json.dumps(document))
        path.chmod(0o600)
        return path

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Server-side, as `kubectl apply` does it."""
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=document)

    # -- life --------------------------------------------------------------------------------------------------------

    def up(self, say: Callable[[str], None] = lambda _: None) -> None:
        """From nothing to nodes that are ready. Raises Conflict when it is there already, or what did not come up."""
        if os.geteuid() != 0:
            raise InvalidInput(
                "a cluster with real nodes needs root: containers, bridges and rules are made", code="no_root"
            )
        if self.layout.folder.exists():
            raise Conflict(
                f"{self.layout.folder} is there: the cluster {self.layout.name} is up, or was not taken down; "
                f"`make cluster-down` takes it away",
                code="already_up",
            )
        self.layout.folder.mkdir(mode=0o755)
        try:
            self._start_all(say)
        except BaseException:
            self.keep_logs(Path(f"{self.layout.folder}-logs"))
            self.down()
            raise

    def keep_logs(self, folder: Path) -> None:
        """Copy what parts and pods have said, which goes with the cluster."""
        shutil.rmtree(folder, ignore_errors=True)
        for logs in (self.layout.folder / "logs", *self.layout.folder.glob("node-*/pod-logs")):
            with contextlib.suppress(shutil.Error):  # a pod may go while we copy
                shutil.copytree(logs, folder / logs.relative_to(self.layout.folder), symlinks=False)

    def down(self) -> None:
        """Whatever of the cluster is there: processes, mounts, groups, links, rules, files."""
        end_group(self.layout.cgroup)
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        _unmount_below(self.layout.folder)
        remove_network(self.layout)
        if self.layout.folder.exists():
            shutil.rmtree(self.layout.folder)

    def enforce_policies(self) -> None:
        """From now on NetworkPolicies hold. Raises InvalidInput for a cluster of more than one node, NotFound."""
        self._start("kube-router", enforcer_command(self.layout))
        self._until(lambda: enforced(self.layout), "policies are enforced")

    def start_cert_manager(self) -> None:
        """Its resources and its controller. Raises NotFound."""
        self._define(cert_manager.resources())
        self._start(cert_manager.NAME, cert_manager.controller_command(self.layout))

    def start_prometheus_operator(self) -> None:
        """Its resources and itself. Raises NotFound."""
        self._define(prometheus_operator.resources())
        self._start(prometheus_operator.NAME, prometheus_operator.operator_command(self.layout))

    def start_prometheus(self, namespace: str, name: str) -> str:
        """As the operator has configured the Prometheus of this name; where it answers. Raises NotFound."""
        made = self.get("-n", namespace, "secret", f"prometheus-{name}")
        maps = self.get("-n", namespace, "configmaps", "-l", f"prometheus-name={name}")["items"]
        rules = {each["metadata"]["name"]: each["data"] for each in maps}
        self._start("prometheus", prometheus_operator.prometheus_command(self.layout, made, rules))
        host, port = self.layout.api_address, prometheus_operator.PROMETHEUS_PORT
        self._until(lambda: _listens(host, port), "Prometheus listens")
        return f"http://{host}:{port}"

    def start_metrics_server(self) -> None:
        """Until it has measured the nodes. Raises NotFound."""
        self._start(metrics_server.NAME, metrics_server.server_command(self.layout))
        self.apply(*metrics_server.resources(self.layout))
        self._until(lambda: len(self.get("nodes.metrics.k8s.io")["items"]) == self.layout.nodes, "nodes are measured")

    def start_fake_nodes(self, names: Sequence[str]) -> None:
        """Nodes without machines, by kwok, until they are ready. Raises NotFound.

        A controller manager would look for Leases more often than they are renewed: end it before.
        """
        self._start(fake_nodes.NAME, fake_nodes.kwok_command(self.layout))
        for start in range(0, len(names), NODES_AT_ONCE):
            some = names[start : start + NODES_AT_ONCE]
            self.apply(*({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in some))
        self._until(lambda: self._ready_nodes() == len(names), "the fake nodes are ready")

    def restart(self, part: str, *, at_once: bool = True) -> None:
        """End one part, by SIGKILL when `at_once`, and start it with the command it had."""
        parts = self._parts()
        if part not in parts:
            raise InvalidInput(f"there is no part {part!r}; the parts are {', '.join(parts)}")
        self.stop_part(part, at_once=at_once)
        self._start(part, parts[part]["command"])

    def stop_part(self, part: str, *, at_once: bool = True) -> None:
        """End a part and leave it ended."""
        pid = self._parts()[part]["pid"]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if at_once else signal.SIGTERM)
        if part in self._processes:
            self._processes.pop(part).wait()
        self._until(lambda: not _alive(pid), f"{part} ends")

    def pid(self, part: str) -> int:
        """Process id of a part, such as `kube-apiserver`."""
        return int(self._parts()[part]["pid"])

    def ready(self) -> None:
        """Wait until the API server is ready."""
        self._until(lambda: self.kubectl("get", "--raw=/readyz", timeout_s=10.0) == "ok", "the API server is ready")

    def _define(self, resources: list[dict[str, Any]]) -> None:
        """CustomResourceDefinitions, until the API server serves them."""
        self.apply(*resources)
        names = [f"crd/{each['metadata']['name']}" for each in resources]
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names, timeout_s=70.0)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _start_all(self, say: Callable[[str], None]) -> None:
        layout = self.layout
        (layout.folder / "logs").mkdir()
        (layout.folder / "resolv.conf").write_text("")
        make_group(layout.cgroup)
        authority = ClusterAuthority(layout.folder / "pki")
        authority.kubeconfig(layout.kubeconfig, layout.api_url, "admin", "system:masters")
        make_network(layout)
        say("control plane: etcd, API server, controller manager, scheduler")
        self._start("etcd", control_plane.etcd_command(layout))
        self._start("kube-apiserver", control_plane.api_server_command(layout, authority))
        self.ready()
        self._start("kube-controller-manager", control_plane.controller_manager_command(layout, authority))
        self._start("kube-scheduler", control_plane.scheduler_command(layout, authority))
        if layout.nodes == 0:
            return
        say(f"nodes: {', '.join(layout.node_names())}, each with containerd and kubelet")
        for number in range(1, layout.nodes + 1):
            self._start_containerd(number)
        import_own_images(layout)
        for number in range(1, layout.nodes + 1):
            self._start_kubelet(number, authority)
        self._start("kube-proxy", control_plane.proxy_command(layout, authority))
        self.apply(*addons(layout))
        self._until(lambda: self._ready_nodes() == layout.nodes, "the nodes are ready")
        say("Services and names: kube-proxy, CoreDNS")
        self._until(self._names_ready, "CoreDNS is ready")

    def _start_containerd(self, number: int) -> None:
        self.layout.node_folder(number).mkdir()
        name = self.layout.node_names()[number - 1]
        make_group(f"{self.layout.cgroup}/{name}")
        cni = write_cni(self.layout, number)
        self._start(f"containerd-{number}", containerd_command(self.layout, number, cni))
        self._until(lambda: self.layout.node_socket(number).exists(), f"containerd of {name} serves")

    def _start_kubelet(self, number: int, authority: ClusterAuthority) -> None:
        name = self.layout.node_names()[number - 1]
        path = self.layout.node_folder(number) / "kubelet.kubeconfig"
        kubeconfig = authority.kubeconfig(path, self.layout.api_url, f"system:node:{name}", "system:nodes")
        self._start(f"kubelet-{number}", kubelet_command(self.layout, number, kubeconfig, authority.certificate))

    def _ready_nodes(self) -> int:
        return sum(
            any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))
            for node in self.get("nodes")["items"]
        )

    def _names_ready(self) -> bool:
        status = self.get("-n", "kube-system", "deployment", "coredns").get("status", {})
        return int(status.get("readyReplicas", 0)) > 0

    def _start(self, part: str, command: list[str]) -> None:
        """In the cluster's group and network, and a session of its own: it outlives the command that started it."""
        with (self.layout.folder / "logs" / f"{part}.log").open("ab") as log:
            process = subprocess.Popen(
                [*inside_namespace(self.layout), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        join_group(self.layout.cgroup, process.pid)
        self._processes[part] = process
        parts = self._parts() | {part: {"pid": process.pid, "command": command}}
        (self.layout.folder / PARTS_FILE).write_text(json.dumps(parts, indent=1))

    def _parts(self) -> dict[str, dict[str, Any]]:
        path = self.layout.folder / PARTS_FILE
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        reason = ""
        while True:
            try:
                if condition():
                    return
            except TalkooError as error:
                reason = f": {error}"
            for part, process in self._processes.items():
                if process.poll() is not None:
                    raise Failed(f"{part} ended with status {process.returncode}: {self._log_end(part)}")
            if time.monotonic() > deadline:
                raise Unavailable(f"not within {START_TIMEOUT_S:.0f} s: {what}{reason}", code="start_timeout")
            time.sleep(POLL_S)

    def _log_end(self, part: str) -> str:
        log = self.layout.folder / "logs" / f"{part}.log"
        return log.read_text(errors="replace")[-KEPT_LOG_CHARACTERS:].strip()


@contextlib.contextmanager
def cluster(layout: Layout) -> Iterator[Cluster]:
    """A cluster for a test run. One that an earlier run left behind, because it was killed, is taken away first."""
    made = Cluster(layout)
    made.down()
    made.up()
    try:
        yield made
    finally:
        made.down()


def _alive(pid: int) -> bool:
    try:
        state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5.0).close()
    except ConnectionRefusedError:
        return False
    return True


def _unmount_below(folder: Path) -> None:
    """The deepest first: containers' root file systems, volumes, network namespaces."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [mount for mount in mounts if mount.startswith(f"{folder}/")]
    for mount in sorted(below, key=len, reverse=True):
        run(["umount", "--lazy", mount])
