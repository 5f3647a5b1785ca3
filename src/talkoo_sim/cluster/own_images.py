"""The project's own images, built from its Dockerfile with buildah on a base that is made here from Debian packages.

No registry of images is asked: the base is Debian's Python under the name that the Dockerfile wants. The images are
kept outside of the checkout, keyed by all that goes into them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from talkoo_sim.cluster.binaries import binary
from talkoo_sim.cluster.commands import run
from talkoo_sim.go_tools import cache_folder, find_go

ROOT = Path(__file__).resolve().parent.parent.parent.parent
BASE = "localhost/talkoo-base-python:3.11"
GO_BASE = "localhost/talkoo-base-go"
REPOSITORY = "talkoo.invalid"
TARGETS = ("control", "storage")
"""Not `train`: torch alone is 5 GB. Pods that train get this environment's own packages, mounted read-only."""
COMET = "control-comet"
"""For the ledger under `ledger.engine: cometbft`."""
SOURCES = (
    "Dockerfile",
    ".dockerignore",
    "pyproject.toml",
    "requirements",
    "proto",
    "src",
    "services",
    "operator",
    "examples",
    "tests/comet/go",
)
PACKAGES = "python3,python3-venv,ca-certificates"
SUITE = "bookworm"
BASE_TIMEOUT_S, BUILD_TIMEOUT_S = 600.0, 900.0
CERTIFICATES = Path("/etc/ssl/certs")


def image_name(target: str) -> str:
    """As pods name it; another one when anything in it changed, so that an upgrade brings it to them."""
    return f"{REPOSITORY}/talkoo-{target}:{_fingerprint()}"


def image_archive(target: str) -> Path:
    """An OCI archive of the image, built unless the very same was built before."""
    archive = cache_folder() / f"image-{target}-{_fingerprint()}.tar"
    if not archive.is_file():
        _ensure_base()
        with_go = [*_go_base()] if target == COMET else []
        sys.stderr.write(f"building the image talkoo-{target} from the Dockerfile\n")
        name = image_name(target)
        _buildah(
            "bud", "--isolation", "chroot", "--layers", "--target", target, "--build-arg", f"PYTHON={BASE}",
            "--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro", *_passed_on(), *with_go, "--tag", name, str(ROOT),
        )  # fmt: skip
        for old in cache_folder().glob(f"image-{target}-*.tar"):
            old.unlink()
        fresh = archive.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        _buildah("push", name, f"docker-archive:{fresh}:{name}")
        fresh.replace(archive)
    return archive


def _passed_on() -> Iterator[str]:
    """What this machine's own package installer is told, such as where certificates lie."""
    for name, value in os.environ.items():
        if name.startswith(("PIP_", "UV_")) or name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            yield from ("--env", f"{name}={value}")


def _ensure_base() -> None:
    if _buildah("images", "--quiet", "--filter", f"reference={BASE}").strip():
        return
    sys.stderr.write(f"making a base image of Debian {SUITE} (once; about two minutes)\n")
    folder = cache_folder() / "base-image"
    shutil.rmtree(folder, ignore_errors=True)
    root = folder / "root"
    root.mkdir(parents=True)
    try:
        run(
            [binary("debootstrap"), "--variant=minbase", f"--include={PACKAGES}", SUITE, root],
            timeout_s=BASE_TIMEOUT_S,
        )
        (folder / "Dockerfile").write_text("FROM scratch\nADD root /\n")
        _buildah("bud", "--isolation", "chroot", "--tag", BASE, str(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _go_base() -> Iterator[str]:
    """Arguments: a base with this machine's Go, and what that has fetched and compiled already."""
    version, root, *kept = run([find_go(), "env", "GOVERSION", "GOROOT", "GOMODCACHE", "GOCACHE"]).split()
    name = f"{GO_BASE}:{version}"
    if not _buildah("images", "--quiet", "--filter", f"reference={name}").strip():
        dockerfile = f"FROM {BASE}\nCOPY . /usr/local/go\nENV PATH=/usr/local/go/bin:/usr/bin:/bin\n"
        _buildah("bud", "--isolation", "chroot", "--tag", name, "--file", "-", root, stdin=dockerfile)
    yield from ("--build-arg", f"GO={name}")
    for variable, folder in zip(("GOMODCACHE", "GOCACHE"), kept, strict=True):
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield from ("--volume", f"{folder}:/{variable}", "--env", f"{variable}=/{variable}")


def _buildah(*arguments: str, stdin: str | None = None) -> str:
    return run([binary("buildah"), "--storage-driver", "overlay", *arguments], stdin=stdin, timeout_s=BUILD_TIMEOUT_S)


@functools.cache
def _fingerprint() -> str:
    """Of every file that the build sees, as git would commit it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    digest = hashlib.sha256()
    for name in sorted(set(listed.split(b"\0")) - {b""}):
        path = ROOT / os.fsdecode(name)
        if path.is_file():
            digest.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    for each in sys.argv[1:] or TARGETS:
        sys.stdout.write(f"{image_archive(each)}\n")
