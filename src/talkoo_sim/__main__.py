"""`python -m talkoo_sim consensus --seeds N`: run seeds, say what happened; a broken seed is named, to be replayed."""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from talkoo_sim.consensus import InvariantBroken, run_seed


@click.group()
def main() -> None:
    """Run production cores over a simulated network, clock and disk."""


@main.command()
@click.option("--seeds", default=100, show_default=True, help="How many seeds to run.")
@click.option("--first", default=0, show_default=True, help="The first seed; with --seeds 1 it replays a failure.")
@click.option("--validators", default=4, show_default=True)
@click.option("--heights", default=4, show_default=True, help="Blocks that every correct validator must decide.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each seed.")
def consensus(seeds: int, first: int, validators: int, heights: int, as_json: bool) -> None:
    """Tendermint under delay, loss, crashes and equivocation."""
    broken = 0
    for seed in range(first, first + seeds):
        try:
            outcome = dataclasses.asdict(run_seed(seed, validators, heights))
        except InvariantBroken as error:
            broken += 1
            outcome = {"seed": seed, "broken": str(error)}
        if as_json:
            click.echo(json.dumps(outcome))
        elif "broken" in outcome:
            click.echo(f"{outcome['broken']}; replay with --first {seed} --seeds 1 --validators {validators}", err=True)
    if not as_json:
        click.echo(f"{seeds - broken} of {seeds} seeds kept every invariant")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
