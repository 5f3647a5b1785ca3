"""`python -m talkoo_ledger.comet --settings FILE`: this node's id in CometBFT's network, as the others name it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from talkoo_core.errors import TalkooError
from talkoo_ledger.comet.home import ensure_node_key, home_of
from talkoo_ledger.settings import LedgerSettings
from talkoo_runtime.settings import load_settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m talkoo_ledger.comet")
    parser.add_argument("--settings", type=Path, required=True, help="TOML file with the ledger node's settings")
    try:
        settings = load_settings(LedgerSettings, parser.parse_args().settings, os.environ)
        reached_at = settings.comet.advertise or settings.comet.listen
        sys.stdout.write(f"{ensure_node_key(home_of(settings))}@{reached_at}\n")
    except TalkooError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
