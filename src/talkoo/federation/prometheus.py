"""Where Prometheus finds the processes of a local federation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from talkoo_runtime.disk import write_atomic

SETTINGS_FILE = "prometheus.yml"
TARGETS_FILE = "prometheus-targets.json"
INTERVAL_S = 5


@dataclass(frozen=True, slots=True)
class Target:
    """One process; `address` is where its metrics are."""

    role: str
    organization: str
    name: str
    address: str


def write_prometheus_settings(home: Path, targets: Iterable[Target]) -> None:
    """For `prometheus --config.file=<home>/prometheus.yml`. Jobs are named as in a cluster: the alerts go by them."""
    groups = [
        {
            "targets": [target.address],
            "labels": {
                "job": f"talkoo-{target.role}",
                "namespace": target.organization,
                "process": target.name,
            },
        }
        for target in targets
    ]
    write_atomic(home / TARGETS_FILE, (json.dumps(groups, indent=2) + "\n").encode())
    settings = {
        "global": {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"},
        "scrape_configs": [{"job_name": "talkoo", "file_sd_configs": [{"files": [str(home / TARGETS_FILE)]}]}],
    }
    write_atomic(home / SETTINGS_FILE, (json.dumps(settings, indent=2) + "\n").encode())  # JSON is YAML
