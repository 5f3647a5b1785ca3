"""`python -m talkoo_sim consensus --seeds N`: run seeds, say what happened; a broken seed is named, to be replayed."""

from __future__ import annotations

import json
import sys
import time

import click

from talkoo_sim.consensus.planted import MISTAKES
from talkoo_sim.consensus.run import replay_command, run_seeds


@click.group()
def main() -> None:
    """Run production cores over a simulated network, clock and disk."""


def _sizes(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: give sizes with commas between them, such as 4,7,10,16") from None
    if not all(4 <= size <= 64 for size in sizes):
        raise click.BadParameter("each size must be 4 to 64: with fewer than four validators none may fail")
    return sizes


@main.command()
@click.option("--seeds", default=100, show_default=True, help="How many seeds to run.")
@click.option("--first", default=0, show_default=True, help="The first seed; with --seeds 1 it replays a failure.")
@click.option(
    "--validators", default="4,7,10,16", show_default=True, callback=_sizes, help="Sizes that the seeds take in turn."
)
@click.option("--heights", default=3, show_default=True, help="Blocks that every honest validator must decide.")
@click.option("--jobs", default=1, show_default=True, help="Processes that share the seeds.")
@click.option(
    "--plant", default="", type=click.Choice(["", *MISTAKES]), help="A mistake to make; its seeds must break."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each seed, then one for all.")
def consensus(
    seeds: int, first: int, validators: tuple[int, ...], heights: int, jobs: int, plant: str, *, as_json: bool
) -> None:
    """Tendermint under partitions, loss, crashes, torn writes, wrong clocks, liars and twins."""
    broken = forks = 0
    began_s = time.perf_counter()
    for outcome in run_seeds(first, seeds, validators, heights, jobs, plant):
        broken += bool(outcome.broken)
        forks += bool(outcome.fork_height)
        if as_json:
            click.echo(json.dumps(outcome.as_json()))
        if outcome.broken:
            click.echo(f"{outcome.broken}\nreplay: {replay_command(outcome, heights, plant)}", err=True)
    spent_s = time.perf_counter() - began_s
    if as_json:
        total = {"seeds": seeds, "broken": broken, "forks": forks, "seconds": round(spent_s, 3), "jobs": jobs}
        click.echo(json.dumps({**total, "seeds_per_second": round(seeds / spent_s, 3)}))
    else:
        click.echo(
            f"{seeds - broken} of {seeds} seeds kept every invariant, in {spent_s:.1f} s; {forks} forks with a third "
            "of liars or more, each accounted for"
        )
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
