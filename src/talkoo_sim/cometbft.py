"""The real CometBFT for tests and benchmarks: built once from the pinned module of tests/comet/go, then kept.

`python -m talkoo_sim.cometbft` builds it, if needed, and prints where it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from talkoo_core.errors import TalkooError
from talkoo_sim.go_tools import TESTS, GoTool, built

VERSION = "1.0.1"
COMETBFT = GoTool(
    "cometbft", VERSION, TESTS / "comet" / "go", "github.com/cometbft/cometbft/cmd/cometbft", "about a minute"
)


def cometbft_binary() -> Path:
    """The binary of CometBFT 1.0.1, built by the first call. Raises NotFound, Failed."""
    return built(COMETBFT)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{cometbft_binary()}\n")
    except TalkooError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
