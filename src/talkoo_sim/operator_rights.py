"""The operator's service account with the chart's rights and no others, made by the real helm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talkoo_sim.cluster.chart import render
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.operator_bed import NAMESPACE, OPERATOR, RELEASE

RULES = "templates/operator-rbac.yaml"


def rules(*settings: str) -> list[dict[str, Any]]:
    """What the chart makes of these values."""
    options = [part for setting in settings for part in ("--set", setting)]
    made = render(None, "--show-only", RULES, *options, release=RELEASE, namespace=NAMESPACE)
    for each in made:
        if not each["kind"].startswith("Cluster"):
            each["metadata"].setdefault("namespace", NAMESPACE)
    return made


def service_account(cluster: Cluster, path: Path, *settings: str) -> list[dict[str, Any]]:
    """Makes the account, and its kubeconfig at `path`. Returns the objects, to be removed."""
    made = rules(*settings)
    cluster.apply(*made)
    cluster.account_kubeconfig(path, NAMESPACE, OPERATOR)
    return made


def remove(cluster: Cluster, *objects: dict[str, Any]) -> None:
    for each in objects:
        where = ["-n", each["metadata"]["namespace"]] if "namespace" in each["metadata"] else []
        cluster.kubectl(*where, "delete", each["kind"], each["metadata"]["name"], "--ignore-not-found")
