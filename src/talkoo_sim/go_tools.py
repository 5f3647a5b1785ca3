"""Programs of the field that tests run for real: built once with Go from a module that pins them, then kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from talkoo_core.errors import Failed, NotFound

TESTS = Path(__file__).resolve().parent.parent.parent / "tests"
GO_USUAL = Path("/usr/local/go/bin/go")
"""Where Go's own installer puts it, often not on PATH."""
BUILD_TIMEOUT_S = 1_800
KEPT_OUTPUT_BYTES = 2_000


@dataclass(frozen=True, slots=True)
class GoTool:
    """A program, the folder of the `go.mod` and `go.sum` that pin it, and what a person reads while it is built."""

    name: str
    version: str
    module: Path
    package: str
    about: str
    """How long the first build takes."""
    flags: str = ""
    """More for the linker, such as the version that the program shall call itself."""
    tags: str = ""
    """Build tags, separated by commas."""


def find_go() -> Path:
    """Go's command. Raises NotFound (`no_go`) with what to install."""
    found = shutil.which("go")
    if found is None and GO_USUAL.is_file():
        return GO_USUAL
    if found is None:
        raise NotFound("there is no Go; install Go 1.26 or newer (https://go.dev/dl)", code="no_go")
    return Path(found)


def cache_folder() -> Path:
    """What is built once and kept outside of the checkout."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "talkoo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def built(tool: GoTool) -> Path:
    """The program, built by the first call. Raises NotFound (no Go, no checkout) or Failed."""
    if not (tool.module / "go.sum").is_file():
        raise NotFound(f"{tool.module} is not there: {tool.name} is built from a checkout", code="no_checkout")
    pinned = (tool.module / "go.mod").read_bytes() + (tool.module / "go.sum").read_bytes()
    name = f"{tool.name}-{hashlib.sha256(pinned).hexdigest()[:16]}"
    binary = cache_folder() / name
    if binary.is_file():
        return binary
    with binary.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other processes of a test run wait here for the one that builds
        if not binary.is_file():
            _build(find_go(), tool, binary)
    return binary


def _build(go: Path, tool: GoTool, binary: Path) -> None:
    sys.stderr.write(f"building {tool.name} {tool.version} with {go} (once; {tool.about})\n")
    sys.stderr.flush()
    fresh = binary.with_name(f"{binary.name}.new")
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    how = ("-trimpath", "-tags", tool.tags, "-ldflags", f"-s -w {tool.flags}")
    command = [str(go), "build", *how, "-o", str(fresh), tool.package]
    try:
        done = subprocess.run(
            command,
            cwd=tool.module,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"building {tool.name} took more than {BUILD_TIMEOUT_S} s", code="build_failed") from None
    if done.returncode != 0:
        raise Failed(f"{tool.name} does not build:\n{done.stderr[-KEPT_OUTPUT_BYTES:]}", code="build_failed")
    fresh.replace(binary)
    sys.stderr.write(f"built {binary}\n")
