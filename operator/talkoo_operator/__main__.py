"""`python -m talkoo_operator --settings FILE`: the operator. Of several replicas the holder of the Lease works."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from pathlib import Path

import uvloop

from talkoo_core.errors import TalkooError
from talkoo_operator.leading import lead
from talkoo_operator.metrics import watch_freshness
from talkoo_operator.probe import Probe
from talkoo_operator.settings import OperatorSettings
from talkoo_operator.told import Told
from talkoo_operator.work import work
from talkoo_runtime.logs import setup_logging
from talkoo_runtime.process_metrics import watch_process
from talkoo_runtime.settings import load_settings

COLLECT_EVERY = 50_000
"""New objects until Python looks for cycles: thousands of TrainingTasks live long, and each look goes through all."""


async def _main(settings: OperatorSettings) -> None:
    async with Probe(settings.probe_listen, settings.resync_s) as probe:
        watch_freshness(lambda: probe.age_s)
        told = Told(settings.name)
        await told.until(lead(settings, lambda: work(settings, probe, told.hear)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m talkoo_operator")
    parser.add_argument("--settings", type=Path, required=True, help="TOML file; docs/kubernetes.md explains it")
    try:
        settings = load_settings(OperatorSettings, parser.parse_args().settings, os.environ)
        setup_logging(settings.name, settings.log_level)
        watch_process(settings.metrics_listen, settings.certificate)
        gc.set_threshold(COLLECT_EVERY)
        uvloop.run(_main(settings))
    except TalkooError as error:
        logging.getLogger(__name__).error("%s", error)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
