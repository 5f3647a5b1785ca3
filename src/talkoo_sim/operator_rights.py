"""The operator's service account with the chart's rights and no others, made by the real helm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from talkoo_sim.cluster.binaries import binary
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.cluster.commands import run
from talkoo_sim.cluster.own_images import ROOT
from talkoo_sim.operator_bed import NAMESPACE, RELEASE

CHART, RULES = ROOT / "helm" / "talkoo", "templates/operator-rbac.yaml"
ACCOUNT = f"{RELEASE}-operator"


def rules(*settings: str) -> list[dict[str, Any]]:
    """What the chart makes of these values."""
    options = [part for setting in settings for part in ("--set", setting)]
    command: list[str | Path] = [
        binary("helm"),
        "template",
        RELEASE,
        CHART,
        "-n",
        NAMESPACE,
        "--show-only",
        RULES,
        *options,
    ]
    made = [each for each in yaml.safe_load_all(run(command)) if each]
    for each in made:
        if not each["kind"].startswith("Cluster"):
            each["metadata"].setdefault("namespace", NAMESPACE)
    return made


def service_account(cluster: Cluster, path: Path, *settings: str) -> list[dict[str, Any]]:
    """Makes the account, and its kubeconfig at `path`. Returns the objects, to be removed."""
    made = rules(*settings)
    cluster.apply(*made)
    admin = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
    token = cluster.kubectl("-n", NAMESPACE, "create", "token", ACCOUNT, "--duration=1h").strip()
    admin["users"] = [{"name": admin["users"][0]["name"], "user": {"token": token}}]
    path.write_text(json.dumps(admin))
    path.chmod(0o600)
    return made


def remove(cluster: Cluster, *objects: dict[str, Any]) -> None:
    for each in objects:
        where = ["-n", each["metadata"]["namespace"]] if "namespace" in each["metadata"] else []
        cluster.kubectl(*where, "delete", each["kind"], each["metadata"]["name"], "--ignore-not-found")
