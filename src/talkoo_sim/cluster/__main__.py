"""`python -m talkoo_sim.cluster up|down|deploy|prepare`: a cluster to play with on this machine.

`deploy` gives the one that is up the code as it is now; `prepare` only builds all parts.
"""

from __future__ import annotations

import argparse
import sys

from talkoo_core.errors import TalkooError
from talkoo_sim.cluster.binaries import DEBIAN, NOT_PARTS, TOOLS, binary, cni_folder, kubectl
from talkoo_sim.cluster.cluster import Cluster
from talkoo_sim.cluster.deployment import Deployment
from talkoo_sim.cluster.layout import Layout
from talkoo_sim.cluster.own_images import COMET, TARGETS, image_archive

DEFAULT_NAME = "play"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m talkoo_sim.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=("up", "down", "deploy", "prepare"))
    parser.add_argument("--name", default=DEFAULT_NAME, help="several clusters have different names")
    parser.add_argument("--nodes", type=int, default=2, help="0: the control plane alone")
    parser.add_argument("--bare", action="store_true", help="without Talkoo")
    arguments = parser.parse_args()
    try:
        if arguments.do == "prepare":
            prepare()
            return 0
        cluster = Cluster(Layout(arguments.name, arguments.nodes))
        if arguments.do == "down":
            cluster.down()
            _say(f"the cluster {arguments.name} is gone")
            return 0
        if arguments.do == "up":
            cluster.up(_say)
        if not arguments.bare and arguments.nodes:
            deploy(cluster)
        _say(f"ready. Use it:\n  export KUBECONFIG={cluster.layout.kubeconfig}\n  {kubectl()} get nodes,pods -A")
    except TalkooError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_status
    return 0


def deploy(cluster: Cluster) -> None:
    deployment = Deployment(cluster)
    deployment.prepare(_say)
    _say("helm upgrade --install talkoo")
    deployment.install()
    deployment.wait_ready()


def prepare() -> None:
    """Build all programs and images, so that nothing waits for it later. Raises NotFound (a program to install)."""
    for name in (*TOOLS, *DEBIAN):
        if name not in NOT_PARTS:
            binary(name)
    cni_folder()
    for target in (*TARGETS, COMET):
        image_archive(target)
    _say("the parts of a test cluster are there")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
