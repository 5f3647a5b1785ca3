"""Persistent volumes on this machine's disk, one folder each, bound to the node that shall have it."""

from __future__ import annotations

import os
from typing import Any

from talkoo_sim.cluster.layout import Layout

USER = 10001
"""Whom the chart's pods run as."""


def volumes(layout: Layout, count: int, size: str = "60Gi") -> list[dict[str, Any]]:
    """`count` volumes of no class, so that claims without a class take them."""
    made = []
    names = layout.node_names()
    for number in range(count):
        folder = layout.folder / "volumes" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, USER, USER)
        terms = [{"key": "kubernetes.io/hostname", "operator": "In", "values": [names[number % len(names)]]}]
        made.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"disk-{number}"},
                "spec": {
                    "capacity": {"storage": size},
                    "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "local": {"path": str(folder)},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": terms}]}},
                },
            }
        )
    return made
