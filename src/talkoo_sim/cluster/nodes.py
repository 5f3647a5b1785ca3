"""One node: containerd with its own root, state and socket, and a kubelet beside it."""

from __future__ import annotations

import json
from pathlib import Path

from talkoo_sim.cluster.binaries import binary, cni_folder
from talkoo_sim.cluster.groups import is_version_1
from talkoo_sim.cluster.images import PAUSE
from talkoo_sim.cluster.layout import Layout

CONTAINERD = """\
version = 2
root = "{folder}/containerd"
state = "{folder}/run"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_programs}"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"""


def containerd_command(layout: Layout, number: int, cni: Path) -> list[str]:
    """Writes its configuration. `restrict_oom_score_adj`: a machine without CAP_SYS_RESOURCE starts no sandbox else."""
    folder = layout.node_folder(number)
    configuration = folder / "containerd.toml"
    configuration.write_text(
        CONTAINERD.format(
            folder=folder,
            socket=layout.node_socket(number),
            pause=PAUSE,
            cni_programs=cni_folder(),
            cni=cni,
            runc=binary("runc"),
        )
    )
    return [str(binary("containerd")), "--config", str(configuration)]


def kubelet_command(layout: Layout, number: int, kubeconfig: Path, authority: Path) -> list[str]:
    """Writes its configuration."""
    folder = layout.node_folder(number)
    name = layout.node_names()[number - 1]
    configuration = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": layout.node_address(number),
        "healthzPort": 0,
        "readOnlyPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{layout.node_socket(number)}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}/{name}",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "clusterDomain": "cluster.local",
        "clusterDNS": [layout.dns_service],
        "resolvConf": str(layout.folder / "resolv.conf"),
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "4s",
        "shutdownGracePeriod": "0s",
        "maxPods": 60,
    }
    if is_version_1():
        configuration["failCgroupV1"] = False
    path = folder / "kubelet.json"
    path.write_text(json.dumps(configuration, indent=1))
    return [
        str(binary("kubelet")),
        f"--config={path}",
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={name}",
        f"--node-ip={layout.node_address(number)}",
        f"--root-dir={folder / 'kubelet'}",
        f"--cert-dir={folder / 'kubelet-pki'}",
    ]
