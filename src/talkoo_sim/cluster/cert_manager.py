"""cert-manager's controller beside a cluster: its own resources, and certificates that it issues and renews.

1.11 is the last version whose program belongs to the module that Go's proxy hands out. Its webhook is left out: nothing
here is converted, and what the chart makes is checked by the resources' own schemas.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from talkoo_sim.cluster.binaries import TOOLS, binary
from talkoo_sim.cluster.commands import run
from talkoo_sim.cluster.layout import Layout
from talkoo_sim.go_tools import find_go

NAME = "cert-manager"
MODULE = "github.com/cert-manager/cert-manager"


def resources() -> list[dict[str, Any]]:
    """Its CustomResourceDefinitions, without the labels that its chart fills in."""
    module = json.loads(run([find_go(), "-C", TOOLS[NAME].module, "mod", "download", "-json", MODULE]))
    files = sorted((Path(module["Dir"]) / "deploy" / "crds").glob("*.yaml"))
    made: list[dict[str, Any]] = [yaml.safe_load(file.read_text()) for file in files]
    for each in made:
        del each["metadata"]["labels"]
    return made


def controller_command(layout: Layout) -> list[str]:
    return [
        str(binary(NAME)),
        f"--kubeconfig={layout.kubeconfig}",
        "--leader-elect=false",
        f"--metrics-listen-address={layout.api_address}:9402",
    ]
