"""`talkoo logs|explain|verify|cancel TASK`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from talkoo.commands.group import Command, Session
from talkoo.commands.listing import completer, format_option

if TYPE_CHECKING:
    from talkoo.verification.report import Report

NOT_PROVEN = 9
"""Exit status of `verify` when a proof does not hold: that of `Corrupt`."""


@click.command(cls=Command)
@click.argument("task", shell_complete=completer("tasks"))
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option(
    "-n", "--tail", type=click.IntRange(0), default=0, help="Only the last lines of each node.  [default: all]"
)
@click.pass_obj
def logs(session: Session, task: str, follow: bool, tail: int) -> None:
    """Print what a task's nodes wrote.

    \b
    Examples:
      talkoo logs digits
      talkoo logs digits -f
      talkoo logs task-6f1a -n 20
    """
    from talkoo.render import time_text

    for line in session.client().task(task).logs(follow=follow, tail=tail):
        moment = time_text(line.time_ns)[11:-1]
        click.echo(f"{click.style(moment, dim=True)} {click.style(f'{line.node}/{line.rank}', fg='cyan')} {line.text}")


@click.command(cls=Command)
@click.argument("task", shell_complete=completer("tasks"))
@format_option
@click.pass_obj
def explain(session: Session, task: str, form: str) -> None:
    """Say why a task waits, runs or failed.

    \b
    Examples:
      talkoo explain digits
      talkoo explain digits -o json
    """
    from talkoo import render
    from talkoo_runtime.plain import plain

    handle = session.client().task(task)
    explanation = handle.explain()
    if form != "table":
        render.print_data({**plain(explanation), "phase": handle.phase, "failure": handle.record.failure}, form)
        return
    why = (handle.record.failure or explanation.summary).removeprefix(f"{handle.phase}: ")
    click.echo(f"{handle.id} ({handle.name}) is {handle.phase}: {why}")
    for reason in explanation.nodes:
        mark = click.style("fits", fg="green") if reason.fits else click.style("does not fit", fg="yellow")
        said = reason.reason.removeprefix(f"{reason.name} ").removeprefix("fits")
        click.echo(f"  {reason.name}: {mark}{': ' + said if said else ''}")


@click.command(cls=Command)
@click.argument("task", shell_complete=completer("tasks"))
@click.option("--recompute", is_flag=True, help="Train the opened segments again here; needs torch.")
@format_option
@click.pass_obj
def verify(session: Session, task: str, recompute: bool, form: str) -> None:
    """Check every proof of a task.

    The chain is replayed from its genesis: signatures of blocks and transactions, commitments, draws, verdicts,
    payments. Nobody's word is taken, the gateway's neither.

    \b
    Examples:
      talkoo verify digits
      talkoo verify digits --recompute
    """
    from talkoo import render

    report = session.client().task(task).verify(recompute=recompute)
    if form != "table":
        render.print_data(_plain_report(report), form)
    else:
        for line in _report_lines(report):
            click.echo(line)
    if not report.ok:
        click.get_current_context().exit(NOT_PROVEN)


def _plain_report(report: Report) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "verdict": report.verdict,
        "checks": [{"name": c.name, "count": c.count, "ok": c.ok, "detail": c.detail} for c in report.checks],
    }


def _report_lines(report: Report) -> list[str]:
    lines = []
    for check in report.checks:
        mark = click.style("ok  ", fg="green") if check.ok else click.style("FAIL", fg="red", bold=True)
        lines.append(f"{mark}  {check.name}: {check.detail}")
    lines.append(report.verdict)
    return lines


@click.command(cls=Command)
@click.argument("task", shell_complete=completer("tasks"))
@click.pass_obj
def cancel(session: Session, task: str) -> None:
    """Cancel a task.

    What is left in escrow returns to its owner; work already accepted stays paid.

    \b
    Examples:
      talkoo cancel digits
    """
    from talkoo_core.amounts import format_tlk

    handle = session.client().task(task)
    left = handle.record.escrow_utlk
    handle.cancel()
    click.echo(f"task {handle.id} ({handle.name}) is cancelled; up to {format_tlk(left)} return to its owner")
