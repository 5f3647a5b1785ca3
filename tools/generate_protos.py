"""Regenerate the Python code of every .proto, or with --check say which generated file is stale.

Generated modules (`_pb2.py`, `_pb2.pyi`, `_pb2_grpc.py`) stand beside their .proto and are committed.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "proto"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def generate(out: Path) -> None:
    sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*.proto"))
    plugin = Path(sys.executable).parent / "protoc-gen-mypy"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{ROOT}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--plugin=protoc-gen-mypy={plugin}",
        f"--mypy_out=quiet:{out}",
        *sources,
    ]
    subprocess.run(command, check=True)


def generated_files(root: Path) -> set[Path]:
    return {p.relative_to(root) for suffix in SUFFIXES for p in root.rglob(f"*{suffix}")}


def stale_files() -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        wanted, present = generated_files(fresh), generated_files(ROOT)
        changed = {p for p in wanted & present if not filecmp.cmp(fresh / p, ROOT / p, shallow=False)}
        return sorted(str(p) for p in (wanted ^ present) | changed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a generated file is stale")
    if parser.parse_args().check:
        stale = stale_files()
        for path in stale:
            print(f"stale: proto/{path}; run tools/generate_protos.py")
        return 1 if stale else 0
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        for path in generated_files(fresh):
            shutil.copyfile(fresh / path, ROOT / path)
            for parent in (ROOT / path).parents:
                if parent == ROOT:
                    break
                (parent / "__init__.py").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
