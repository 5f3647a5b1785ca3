"""cert-manager's controller beside a cluster: its own resources, and certificates that it issues and renews.

1.11 is the last version whose program belongs to the module that Go's proxy hands out. Its webhook is left out: nothing
here is converted, and what the chart makes is checked by the resources' own schemas.
"""

from __future__ import annotations

from typing import Any

from talkoo_sim.cluster.binaries import binary, resources_of
from talkoo_sim.cluster.layout import Layout

NAME = "cert-manager"
MODULE = "github.com/cert-manager/cert-manager"


def resources() -> list[dict[str, Any]]:
    """Its CustomResourceDefinitions, without the labels that its chart fills in."""
    made = resources_of(NAME, MODULE, "deploy/crds/*.yaml")
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
