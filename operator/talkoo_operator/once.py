"""Programs of the operator's image that do one thing and end: their command line and their exit status."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from talkoo_core.errors import TalkooError
from talkoo_runtime.settings import load_settings

S = TypeVar("S", bound=msgspec.Struct)


def run_once(module: str, about: str | None, settings_type: type[S], work: Callable[[S], Awaitable[Any]]) -> int:
    """`python -m <module> --settings FILE`. What it was refused is one line, and a status of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--settings", type=Path, required=True, help="TOML file; docs/kubernetes.md explains it")
    path = parser.parse_args().settings

    async def run() -> None:
        await work(load_settings(settings_type, path, os.environ))

    try:
        asyncio.run(run())
    except TalkooError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_status
    return 0
