"""The real CometBFT for tests and benchmarks: built once from the pinned module of tests/comet/go, then kept.

`python -m talkoo_sim.cometbft` builds it, if needed, and prints where it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from talkoo_core.errors import Failed, NotFound, TalkooError

VERSION = "1.0.1"
PACKAGE = "github.com/cometbft/cometbft/cmd/cometbft"
MODULE = Path(__file__).resolve().parent.parent.parent / "tests" / "comet" / "go"
GO_USUAL = Path("/usr/local/go/bin/go")
"""Where Go's own installer puts it, often not on PATH."""
BUILD_TIMEOUT_S = 1_200
KEPT_OUTPUT_BYTES = 2_000


def find_go() -> Path:
    """Go's command. Raises NotFound (`no_go`) with what to install."""
    found = shutil.which("go")
    if found is None and GO_USUAL.is_file():
        return GO_USUAL
    if found is None:
        raise NotFound(
            f"there is no Go to build CometBFT {VERSION} with; install Go 1.25 or newer (https://go.dev/dl)",
            code="no_go",
        )
    return Path(found)


def cometbft_binary() -> Path:
    """The binary of CometBFT 1.0.1, built by the first call (about a minute). Raises NotFound, Failed."""
    if not (MODULE / "go.sum").is_file():
        raise NotFound(f"{MODULE} is not there: CometBFT is built from a checkout of the project", code="no_checkout")
    pinned = hashlib.sha256((MODULE / "go.mod").read_bytes() + (MODULE / "go.sum").read_bytes()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "talkoo"
    binary = cache / f"cometbft-{pinned[:16]}"
    if binary.is_file():
        return binary
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"cometbft-{pinned[:16]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other processes of a test run wait here for the one that builds
        if not binary.is_file():
            _build(find_go(), binary)
    return binary


def _build(go: Path, binary: Path) -> None:
    sys.stderr.write(f"building CometBFT {VERSION} with {go} (once; about a minute)\n")
    sys.stderr.flush()
    fresh = binary.with_suffix(".new")
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    command = [str(go), "build", "-trimpath", "-ldflags", "-s -w", "-o", str(fresh), PACKAGE]
    try:
        built = subprocess.run(
            command, cwd=MODULE, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"building CometBFT took more than {BUILD_TIMEOUT_S} s", code="build_failed") from None
    if built.returncode != 0:
        raise Failed(f"CometBFT does not build:\n{built.stderr[-KEPT_OUTPUT_BYTES:]}", code="build_failed")
    fresh.replace(binary)
    sys.stderr.write(f"built {binary}\n")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{cometbft_binary()}\n")
    except TalkooError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
