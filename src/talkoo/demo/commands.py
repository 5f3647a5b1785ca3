"""`talkoo demo`."""

from __future__ import annotations

import asyncio
import datetime
import sys
from pathlib import Path

import click

PLAIN_WIDTH = 120
"""Columns where the output is no terminal."""


@click.command(epilog="Examples:\n\n  talkoo demo\n\n  talkoo demo --folder /tmp/first-try --json")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the run's files go.  [default: runs/<date>-<time>]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; the story goes to stderr.")
def demo(folder: Path | None, as_json: bool) -> None:
    """Run the whole loop once on this machine: fund, train, catch a forger, pay, serve. Ends with a report."""
    from rich.console import Console

    from talkoo.demo.run import outcome_json, run_demo
    from talkoo.demo.scene import Scene

    where = folder or Path("runs") / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"  # noqa: DTZ005  # the person's own clock
    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=as_json, highlight=False, width=PLAIN_WIDTH)
    with Scene(console) as scene:
        outcome = asyncio.run(run_demo(where.resolve(), scene))
        console.print(f"\nReport: {outcome.report}\nCurve:  {outcome.curve}")
    if as_json:
        sys.stdout.write(outcome_json(outcome).decode() + "\n")
