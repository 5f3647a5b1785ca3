"""`talkoo tasks|nodes|models|accounts|payments|blocks`: lists, and one thing in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from talkoo.commands.group import Command, Session

FORMATS = ("table", "json", "yaml")
DEFAULT_BLOCKS = 20
MAX_BLOCKS = 1000

F = TypeVar("F", bound=Callable[..., Any])


def format_option(command: F) -> F:
    option = click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How to print.",
    )
    return option(command)


def completer(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Names of things for the shell. Silent where there is no gateway: a completion must never print an error."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        from talkoo.client import Client
        from talkoo_core.errors import TalkooError

        session = ctx.find_object(Session) or Session()
        try:
            with Client(session.home, user=session.user) as client:
                found = {
                    "tasks": lambda: [name for task in client.tasks() for name in (task.id, task.name)],
                    "nodes": lambda: [node.name for node in client.nodes()],
                    "models": lambda: [name for m in client.models() for name in (m.version, m.model)],
                    "accounts": lambda: [a.label or a.address for a in client.accounts()],
                }[kind]()
        except TalkooError:
            return []
        return sorted({name for name in found if name.startswith(incomplete)})

    return complete


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=completer("tasks"))
@format_option
@click.pass_obj
def tasks(session: Session, name: str | None, form: str) -> None:
    """List tasks, or show one.

    NAME is an id, a unique beginning of it, or the task's name (the newest of that name).

    \b
    Examples:
      talkoo tasks
      talkoo tasks digits -o yaml
      talkoo tasks -o json | jq '.[].phase'
    """
    from talkoo import render

    client = session.client()
    if name:
        render.show_one(client.task(name).record, form)
    else:
        records = [task.record for task in client.tasks()]
        render.show_many(records, render.TASKS, form, "no tasks yet; submit one with `talkoo submit task.yaml`")


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=completer("nodes"))
@format_option
@click.pass_obj
def nodes(session: Session, name: str | None, form: str) -> None:
    """List nodes, or show one.

    \b
    Examples:
      talkoo nodes
      talkoo nodes north-1 -o json
    """
    from talkoo import render

    client = session.client()
    if name:
        render.show_one(client.node(name), form)
    else:
        render.show_many(client.nodes(), render.NODES, form, "no node has registered yet")


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=completer("models"))
@format_option
@click.pass_obj
def models(session: Session, name: str | None, form: str) -> None:
    """List models, or show one.

    NAME is a version such as digits@1, or a model: then its newest version is shown.

    \b
    Examples:
      talkoo models
      talkoo models digits@1 -o yaml
    """
    from talkoo import render

    client = session.client()
    if name:
        render.show_one(client.model(name), form)
    else:
        nothing = "no models yet; a task that is completed registers one"
        render.show_many(client.models(), render.MODELS, form, nothing)


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=completer("accounts"))
@click.option("--me", is_flag=True, help="Show your own account.")
@format_option
@click.pass_obj
def accounts(session: Session, name: str | None, me: bool, form: str) -> None:
    """List accounts, or show one.

    NAME is an address, a unique beginning of it, or a label.

    \b
    Examples:
      talkoo accounts
      talkoo accounts --me
      talkoo accounts alice -o json
    """
    from talkoo import render

    client = session.client()
    if name or me:
        render.show_one(client.account("" if me else name or ""), form)
    else:
        by_label = sorted(client.accounts(), key=lambda account: (not account.label, account.label, account.address))
        render.show_many(by_label, render.ACCOUNTS, form, "the ledger has no accounts")


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=completer("tasks"))
@format_option
@click.pass_obj
def payments(session: Session, name: str | None, form: str) -> None:
    """List payments and their proofs.

    NAME narrows the list to a task, a node or an account.

    \b
    Examples:
      talkoo payments
      talkoo payments digits
      talkoo payments alice -o json
    """
    from talkoo import render

    client = session.client()
    found = client.payments(name or "")
    names: dict[str, str] = {}
    if found and form == "table":
        names = {account.address: account.label for account in client.accounts() if account.label}
        names |= {node.id: node.name for node in client.nodes()}
    render.show_many(found, render.payment_columns(names), form, "nothing has been paid yet")


@click.command(cls=Command)
@click.argument("height", required=False, type=click.IntRange(1))
@click.option(
    "-n",
    "--last",
    type=click.IntRange(1, MAX_BLOCKS),
    default=DEFAULT_BLOCKS,
    show_default=True,
    help="How many of the newest.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on as blocks are decided.")
@format_option
@click.pass_obj
def blocks(session: Session, height: int | None, last: int, follow: bool, form: str) -> None:
    """List blocks, or show one.

    \b
    Examples:
      talkoo blocks
      talkoo blocks 42 -o yaml
      talkoo blocks -n 5 -f
    """
    from talkoo import render
    from talkoo_core.errors import NotFound

    client = session.client()
    newest = client.status().height
    if height is not None:
        if height > newest:
            raise NotFound(f"there is no block {height} yet; the newest is {newest}")
        render.show_one(next(client.block_events(height, height)), form)
        return
    first = max(newest - last + 1, 1)
    found = list(client.block_events(first, newest)) if newest else []
    render.show_many(found, render.BLOCKS, form, "no block has been decided yet")
    if follow:
        for block in client.block_events(newest + 1):
            click.echo(render.block_line(block))
