"""The programs of a real cluster: from KUBEBUILDER_ASSETS or PATH where they are, else built once with Go."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from talkoo_core.errors import NotFound, TalkooError
from talkoo_sim.cluster.commands import run
from talkoo_sim.go_tools import TESTS, GoTool, built, find_go

GO_MODULES = TESTS / "kubernetes" / "go"
KUBERNETES_VERSION = "1.37.2"
PROMETHEUS_VERSION = "3.13.0"
"""Its Go module calls it 0.313.0. Debian's program does not look for targets in Kubernetes."""
ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
DEBIAN = {
    "containerd": "containerd",
    "runc": "runc",
    "ipset": "ipset",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "sysctl": "procps",
    "debootstrap": "debootstrap",
    "buildah": "buildah",
    "ctr": "containerd",
    "promtool": "prometheus",
}
"""Programs that come from the distribution, and their Debian packages."""
NOT_PARTS = frozenset({"kwok", "promtool"})
"""What no cluster needs: fake nodes for scale, and what judges the monitoring rules."""
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
CNI_PLUGINS = ("ptp", "host-local", "portmap", "loopback")

_VERSION = "k8s.io/component-base/version"
_KUBERNETES_FLAGS = (
    f"-X {_VERSION}.gitVersion=v{KUBERNETES_VERSION} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=37 "
    f"-X k8s.io/client-go/pkg/version.gitVersion=v{KUBERNETES_VERSION}"
)


def _kubernetes(name: str, about: str) -> GoTool:
    package = f"k8s.io/kubernetes/cmd/{name}"
    return GoTool(name, KUBERNETES_VERSION, GO_MODULES / "kubernetes", package, about, _KUBERNETES_FLAGS)


TOOLS = {
    tool.name: tool
    for tool in (
        _kubernetes("kube-apiserver", "about five minutes, 2.4 GB of memory"),
        _kubernetes("kube-controller-manager", "about two minutes"),
        _kubernetes("kube-scheduler", "seconds"),
        _kubernetes("kubelet", "about a minute"),
        _kubernetes("kube-proxy", "seconds"),
        GoTool("etcd", "3.7.3", GO_MODULES / "etcd", "go.etcd.io/etcd/server/v3", "half a minute"),
        GoTool("coredns", "1.15.0", GO_MODULES / "coredns", "github.com/coredns/coredns", "about two minutes"),
        GoTool("helm", "4.3.1", GO_MODULES / "helm", "helm.sh/helm/v4/cmd/helm", "about two minutes"),
        GoTool(
            "cert-manager",
            "1.11.5",
            GO_MODULES / "cert-manager",
            "github.com/cert-manager/cert-manager/cmd/controller",
            "about three minutes",
        ),
        GoTool(
            "kube-router",
            "2.1.0",
            GO_MODULES / "kube-router",
            "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
            "about three minutes",
        ),
        GoTool(
            "metrics-server",
            "0.9.0",
            GO_MODULES / "metrics-server",
            "sigs.k8s.io/metrics-server/cmd/metrics-server",
            "about two minutes",
        ),
        GoTool(
            "prometheus-operator",
            "0.85.0",
            GO_MODULES / "prometheus-operator",
            "github.com/prometheus-operator/prometheus-operator/cmd/operator",
            "about three minutes",
        ),
        GoTool(
            "prometheus",
            PROMETHEUS_VERSION,
            GO_MODULES / "prometheus",
            "github.com/prometheus/prometheus/cmd/prometheus",
            "about three minutes",
            tags="remove_all_sd,enable_kubernetes_sd",
        ),
        GoTool("kwok", "0.8.0", GO_MODULES / "kwok", "sigs.k8s.io/kwok/cmd/kwok", "about a minute"),
    )
}


def binary(name: str) -> Path:
    """A program of the cluster. Raises NotFound (what to install, or that there is no Go) or Failed (build)."""
    if assets := os.environ.get(ASSETS_VARIABLE):
        given = Path(assets) / name
        if given.is_file():
            return given
    if name in TOOLS:
        return built(TOOLS[name])
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        package = DEBIAN.get(name, name)
        raise NotFound(f"there is no {name}; install it (Debian: apt-get install {package})", code="no_program")
    return Path(found)


def resources_of(name: str, module: str, pattern: str) -> list[dict[str, Any]]:
    """What lies in YAML or JSON in a Go module that a program is built from; the module is fetched where it is not."""
    done = json.loads(run([find_go(), "-C", TOOLS[name].module, "mod", "download", "-json", module]))
    return [yaml.safe_load(path.read_text()) for path in sorted(Path(done["Dir"]).glob(pattern))]


def kubectl() -> Path:
    """kubectl from PATH, else from the development environment."""
    beside = Path(sys.executable).parent / "kubectl"
    return beside if beside.is_file() else binary("kubectl")


def cni_folder() -> Path:
    """Where the CNI plug-ins are. Raises NotFound."""
    for folder in CNI_FOLDERS:
        if all((folder / plugin).is_file() for plugin in CNI_PLUGINS):
            return folder
    raise NotFound(
        f"the CNI plug-ins {', '.join(CNI_PLUGINS)} are in none of {', '.join(map(str, CNI_FOLDERS))}; install them "
        "(Debian: apt-get install containernetworking-plugins)",
        code="no_program",
    )


if __name__ == "__main__":
    try:
        for each in sys.argv[1:] or TOOLS:
            sys.stdout.write(f"{binary(each)}\n")
            sys.stdout.flush()
    except TalkooError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
