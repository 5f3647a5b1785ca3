"""Images made by hand of one static program each, and their import into the nodes' containerd."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

from talkoo_core.errors import Failed
from talkoo_sim.cluster.binaries import GO_MODULES, binary
from talkoo_sim.cluster.commands import run
from talkoo_sim.cluster.layout import Layout
from talkoo_sim.go_tools import cache_folder, find_go

PAUSE = "talkoo.invalid/pause:1"
COREDNS = "talkoo.invalid/coredns:1"
IMPORT_TIMEOUT_S = 300.0


def pause_program() -> Path:
    """What holds a pod's namespaces: it waits for a signal and buries orphans. Built in a second."""
    source = GO_MODULES / "pause" / "pause.go"
    name = f"pause-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    program = cache_folder() / name
    if not program.is_file():
        fresh = program.with_name(f"{name}.{os.getpid()}")
        command = [str(find_go()), "build", "-trimpath", "-ldflags", "-s -w", "-o", str(fresh), str(source)]
        built = subprocess.run(
            command, env=os.environ | {"CGO_ENABLED": "0"}, capture_output=True, text=True, timeout=120, check=False
        )
        if built.returncode != 0:
            raise Failed(f"the pause program does not build:\n{built.stderr}", code="build_failed")
        fresh.replace(program)
    return program


def image_of(program: Path, name: str) -> bytes:
    """An image archive (Docker's format) that holds one program, which is its entry point."""
    layer = _tar({"program": (program.read_bytes(), 0o755)})
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/program"], "User": "65532:65532"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    return _tar(
        {"config.json": (configuration, 0o644), "layer.tar": (layer, 0o644), "manifest.json": (manifest, 0o644)}
    )


def import_image(layout: Layout, archive: Path) -> None:
    """Into the containerd of every node."""
    for number in range(1, layout.nodes + 1):
        run(
            [
                binary("ctr"),
                "--address",
                layout.node_socket(number),
                "--namespace",
                "k8s.io",
                "images",
                "import",
                archive,
            ],
            timeout_s=IMPORT_TIMEOUT_S,
        )


def import_own_images(layout: Layout) -> None:
    """Pause and CoreDNS."""
    for program, name in ((pause_program(), PAUSE), (binary("coredns"), COREDNS)):
        archive = layout.folder / f"{name.partition('/')[2].partition(':')[0]}.tar"
        archive.write_bytes(image_of(program, name))
        import_image(layout, archive)


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
