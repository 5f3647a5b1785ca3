"""`talkoo submit`."""

from __future__ import annotations

from pathlib import Path

import click

from talkoo.commands.group import Command, Session


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-w", "--watch", is_flag=True, help="Stay and watch until the task has ended.")
@click.option(
    "--flops-per-sample",
    type=click.IntRange(1),
    metavar="N",
    help="Operations of one sample, forward and backward; counted with torch where it is not given.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and say what it may cost; send nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the task's id.")
@click.pass_obj
def submit(session: Session, file: Path, watch: bool, flops_per_sample: int | None, dry_run: bool, quiet: bool) -> None:
    """Submit a training task.

    FILE is a YAML task file; the paths in it are relative to its folder. The program is packed and the data hashed and
    uploaded, the budget goes into escrow, and what is not spent comes back.

    \b
    Examples:
      talkoo submit examples/digits/task.yaml --watch
      talkoo submit task.yaml --as bob
      talkoo submit task.yaml --dry-run
    """
    from talkoo_core.amounts import format_tlk

    client = session.client()
    if not quiet:
        click.echo(f"checking {file}", err=True)
    prepared = client.prepare(file, flops_per_sample)
    spec = prepared.spec
    if dry_run:
        least = client.least_escrow(prepared)
        click.echo(
            f"{file} is in order: {spec.steps} steps of {spec.global_batch} samples, "
            f"{spec.flops_per_sample:,} operations each, at most {format_tlk(least)}"
        )
        return
    task = client.send_task(prepared)
    if quiet:
        click.echo(task.id)
    else:
        click.echo(f"task {task.id} ({task.name}): {format_tlk(prepared.budget_utlk)} in escrow")
    if not watch:
        if not quiet:
            click.echo(f"follow it with `talkoo logs {task.name} -f`, or `talkoo tasks {task.name}`", err=True)
        return
    from talkoo.watch_view import show

    show(task.watch())
    task.refresh().check()
