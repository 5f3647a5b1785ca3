"""The Prometheus operator beside a cluster: it configures a Prometheus by ServiceMonitors and PrometheusRules."""

from __future__ import annotations

import gzip
from base64 import b64decode
from pathlib import Path
from typing import Any

import yaml

from talkoo_sim.cluster.binaries import binary, resources_of
from talkoo_sim.cluster.layout import Layout

NAME = "prometheus-operator"
MODULE = "github.com/prometheus-operator/prometheus-operator"
PORT, PROMETHEUS_PORT = 10_444, 10_445
RULES = "/etc/prometheus/rules/"
"""Where the pods that the operator makes have the ConfigMaps of rules, each in a folder of its name."""


def resources() -> list[dict[str, Any]]:
    """Its CustomResourceDefinitions."""
    return resources_of(NAME, MODULE, "jsonnet/prometheus-operator/*-crd.json")


def operator_command(layout: Layout) -> list[str]:
    keys = layout.folder / "pki"
    return [
        str(binary(NAME)),
        f"--apiserver={layout.api_url}",
        f"--ca-file={keys / 'ca.pem'}",
        f"--cert-file={keys / 'admin.pem'}",
        f"--key-file={keys / 'admin.key'}",
        f"--web.listen-address={layout.api_address}:{PORT}",
        "--kubelet-endpoints=false",
    ]


def prometheus_command(layout: Layout, made: dict[str, Any], rules: dict[str, dict[str, str]]) -> list[str]:
    """Prometheus itself, on this machine: the operator's pods need an image that is not here.

    `made`: the Secret with the configuration. `rules`: the data of its ConfigMaps of rules, by their names.
    """
    folder = layout.folder / "prometheus"
    for name, files in rules.items():
        (folder / name).mkdir(parents=True)
        for file, content in files.items():
            (folder / name / file).write_text(content)
    text = gzip.decompress(b64decode(made["data"]["prometheus.yaml.gz"])).decode()
    configuration = yaml.safe_load(text.replace("$(SHARD)", "0"))  # filled in by the pods' reloader otherwise
    configuration["rule_files"] = [_moved(each, folder) for each in configuration["rule_files"]]
    for job in configuration["scrape_configs"]:
        for discovery in job["kubernetes_sd_configs"]:
            discovery["kubeconfig_file"] = str(layout.kubeconfig)
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(configuration))
    return [
        str(binary("prometheus")),
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={layout.api_address}:{PROMETHEUS_PORT}",
    ]


def _moved(path: str, folder: Path) -> str:
    return str(folder / path.removeprefix(RULES))
