"""`talkoo member`: who belongs to the federation, joining it and leaving it."""

from __future__ import annotations

from pathlib import Path

import click

from talkoo.commands.group import Command, Session
from talkoo.commands.listing import format_option
from talkoo_core.errors import Conflict, InvalidInput

ACTIONS = ("list", "new-key", "apply", "approve", "rotate-key", "leave")


@click.command(cls=Command)
@click.argument("action", type=click.Choice(ACTIONS), default="list")
@click.argument("name", required=False)
@click.option("--consensus-key", type=click.Path(path_type=Path), help="Key file that will vote (apply, rotate-key).")
@click.option("--scheduler", metavar="ADDRESS", help="Address of the scheduler's key (apply).")
@click.option("--validator", metavar="ADDRESS", help="Address of the verdict key (apply).")
@click.option(
    "--authority", type=click.Path(path_type=Path), help="Certificate authority, PEM; trusted by members later (apply)."
)
@click.option("--yes", is_flag=True, help="Leave without asking.")
@format_option
@click.pass_obj
def member(
    session: Session,
    action: str,
    name: str | None,
    consensus_key: Path | None,
    scheduler: str | None,
    validator: str | None,
    authority: Path | None,
    yes: bool,
    form: str,
) -> None:
    """List members, join, or leave.

    ACTION is list, new-key, apply, approve, rotate-key or leave; NAME is the organization (new-key: the file to make).
    The last four are signed with the organization owner's key.

    \b
    Examples:
      talkoo member
      talkoo member new-key consensus.key
      talkoo member apply north --consensus-key consensus.key --scheduler tlk1… --validator tlk1…
      talkoo member approve north
      talkoo member rotate-key north --consensus-key new.key
      talkoo member leave north
    """
    if action == "list":
        _list(session, form)
        return
    if not name:
        what = "file" if action == "new-key" else "organization"
        raise InvalidInput(f"name the {what}: talkoo member {action} NAME")
    from talkoo.membership import Membership
    from talkoo_runtime.keys import load_key
    from talkoo_runtime.pki import certificate_der

    if action == "new-key":
        _new_key(Path(name))
        return

    client = session.client()
    membership = Membership(client.core)
    if action == "apply":
        if consensus_key is None or not scheduler or not validator:
            raise InvalidInput("apply takes --consensus-key, --scheduler and --validator")
        der = certificate_der(authority) if authority is not None else b""
        result = client.run(membership.apply(name, load_key(consensus_key), scheduler, validator, der))
    elif action == "rotate-key":
        if consensus_key is None:
            raise InvalidInput("rotate-key takes --consensus-key, the key that will vote")
        result = client.run(membership.rotate_key(name, load_key(consensus_key)))
    elif action == "approve":
        result = client.run(membership.approve(name))
    else:
        if not yes:
            click.confirm(f"{name} gives up its voting power and takes its stake back; leave?", abort=True)
        result = client.run(membership.leave(name))
    said = {
        "apply": f"{name} has applied; members with more than two thirds of voting power have to approve it",
        "approve": f"{name} is approved",
        "rotate-key": f"the new key of {name} votes from block {result.height + 2} on; restart its node with it then",
        "leave": f"{name} has left; its stake comes back when unbonding is over",
    }
    click.echo(f"{said[action]} (block {result.height}, transaction {result.hash.hex()})")


def _new_key(path: Path) -> None:
    from talkoo_runtime.keys import address_of, create_key

    try:
        key = create_key(path)
    except FileExistsError:
        raise Conflict(f"{path} exists already; a key is never overwritten, name another file") from None
    click.echo(f"{path} holds a new key, readable by you only; its address is {address_of(key)}")


def _list(session: Session, form: str) -> None:
    from talkoo import render
    from talkoo.membership import Membership

    client = session.client()
    membership = Membership(client.core)
    applications = client.run(membership.applications())
    render.show_many(client.organizations(), render.ORGANIZATIONS, form, "no organization")
    for each in applications if form == "table" else ():
        approvals = ", ".join(each.approvals) or "nobody yet"
        click.echo(f"{each.name} has applied in block {each.height}, approved by {approvals}")
