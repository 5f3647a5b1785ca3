"""What every process tells about itself: its version, how long its certificate holds, how full its disk is."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

from talkoo_runtime.metrics import MetricsServer, before_scrape, gauge, serve_metrics

BUILD = gauge("talkoo_build_info", "1, with the version of the program.", ["version"])
CERTIFICATE_EXPIRY = gauge(
    "talkoo_certificate_expiry_timestamp_seconds", "When the process's own certificate ends, in seconds since 1970."
)
DISK_SIZE = gauge("talkoo_state_disk_size_bytes", "Size of the file system that holds the process's folder.")
DISK_FREE = gauge("talkoo_state_disk_free_bytes", "What is free of it for this user.")


def watch_process(listen: str, certificate: str, state_dir: str = "") -> MetricsServer | None:
    """Serve metrics at `listen` (empty: nothing is done), these four among them. Raises as `serve_metrics`."""
    server = serve_metrics(listen)
    if server is None:
        return None
    BUILD.set(1, version=version("talkoo"))
    before_scrape(lambda: CERTIFICATE_EXPIRY.set(expiry_s(Path(certificate))))
    if state_dir:
        before_scrape(lambda: _read_disk(state_dir))
    return server


def expiry_s(certificate: Path) -> float:
    """Of the first certificate in a PEM file. Raises OSError or ValueError."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()


def _read_disk(folder: str) -> None:
    usage = shutil.disk_usage(folder)
    DISK_SIZE.set(usage.total)
    DISK_FREE.set(usage.free)
