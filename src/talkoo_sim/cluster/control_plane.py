"""The command lines of etcd, API server, controller manager and scheduler."""

from __future__ import annotations

import json
from pathlib import Path

from talkoo_sim.cluster.binaries import binary
from talkoo_sim.cluster.certificates import ClusterAuthority
from talkoo_sim.cluster.layout import Layout

ETCD_CLIENT_PORT, ETCD_PEER_PORT = 2379, 2380
FRONT_PROXY = "front-proxy-client"
"""Whom servers of other API groups believe about who asks."""


def etcd_command(layout: Layout) -> list[str]:
    """On an address of loopback that no pod reaches. Its disk is not flushed: the cluster is not meant to last."""
    client, peer = f"http://{_loopback(layout)}:{ETCD_CLIENT_PORT}", f"http://{_loopback(layout)}:{ETCD_PEER_PORT}"
    return [
        str(binary("etcd")),
        "--name=one",
        f"--data-dir={layout.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=one={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server_command(layout: Layout, authority: ClusterAuthority) -> list[str]:
    """Bound to an address that pods reach, so that the Service `kubernetes` works for them."""
    hosts = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    certificate, key = authority.issue(
        "api-server", "kube-apiserver", hosts=(*hosts, layout.api_service, layout.api_address)
    )
    kubelet_certificate, kubelet_key = authority.issue("api-server-to-kubelet", "kube-apiserver", "system:masters")
    proxy_certificate, proxy_key = authority.issue("api-server-as-proxy", FRONT_PROXY)
    private, public = authority.service_account_key()
    return [
        str(binary("kube-apiserver")),
        f"--etcd-servers=http://{_loopback(layout)}:{ETCD_CLIENT_PORT}",
        f"--bind-address={layout.api_address}",
        f"--advertise-address={layout.api_address}",
        f"--secure-port={layout.api_port}",
        f"--tls-cert-file={certificate}",
        f"--tls-private-key-file={key}",
        f"--client-ca-file={authority.certificate}",
        f"--kubelet-client-certificate={kubelet_certificate}",
        f"--kubelet-client-key={kubelet_key}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-cluster-ip-range={layout.services_cidr}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={public}",
        f"--service-account-signing-key-file={private}",
        "--authorization-mode=Node,RBAC",
        f"--proxy-client-cert-file={proxy_certificate}",
        f"--proxy-client-key-file={proxy_key}",
        f"--requestheader-client-ca-file={authority.certificate}",
        f"--requestheader-allowed-names={FRONT_PROXY}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--enable-aggregator-routing=true",
        "--allow-privileged=true",
        f"--cert-dir={layout.folder / 'api-server'}",
        "--v=1",
    ]


def controller_manager_command(layout: Layout, authority: ClusterAuthority) -> list[str]:
    user = "system:kube-controller-manager"
    kubeconfig = authority.kubeconfig(layout.folder / "controller-manager.kubeconfig", layout.api_url, user)
    return [
        str(binary("kube-controller-manager")),
        f"--kubeconfig={kubeconfig}",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={authority.certificate.parent / 'service-accounts.key'}",
        f"--root-ca-file={authority.certificate}",
        "--leader-elect=false",
        "--secure-port=0",
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=16s",
        "--v=1",
    ]


def scheduler_command(layout: Layout, authority: ClusterAuthority) -> list[str]:
    user = "system:kube-scheduler"
    kubeconfig = authority.kubeconfig(layout.folder / "scheduler.kubeconfig", layout.api_url, user)
    return [
        str(binary("kube-scheduler")),
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--secure-port=0",
        "--v=1",
    ]


def proxy_command(layout: Layout, authority: ClusterAuthority) -> list[str]:
    """One for all nodes: they share this machine's network namespace, and with it the rules."""
    kubeconfig = authority.kubeconfig(layout.folder / "proxy.kubeconfig", layout.api_url, "system:kube-proxy")
    configuration = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "mode": "nftables",
        "clusterCIDR": layout.pods_cidr,
        "hostnameOverride": layout.node_names()[0],
        "healthzBindAddress": f"{layout.node_address(1)}:10256",
        "metricsBindAddress": f"{layout.node_address(1)}:10249",
        "conntrack": {"maxPerCore": 0, "min": 0},
    }
    path: Path = layout.folder / "proxy.json"
    path.write_text(json.dumps(configuration, indent=1))
    return [str(binary("kube-proxy")), f"--config={path}"]


def _loopback(layout: Layout) -> str:
    """Each cluster its own, so that their ports do not meet."""
    second = layout.network.rpartition(".")[2]
    return f"127.{second}.0.1"
