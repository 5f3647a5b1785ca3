"""`talkoo request` and `talkoo transfer`: what a token holder does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from talkoo.commands.group import Command, Session
from talkoo.commands.listing import completer, format_option

MAX_INPUT_BYTES = 1 << 20


@click.command(cls=Command)
@click.argument("model", shell_complete=completer("models"))
@click.option("-i", "--input", "given", required=True, metavar="JSON|@FILE|-", help="A list of inputs, or one input.")
@click.option("--most", metavar="AMOUNT", help="Refuse to pay more, e.g. 0.05.")
@format_option
@click.pass_obj
def request(session: Session, model: str, given: str, most: str | None, form: str) -> None:
    """Pay a model for an answer.

    The node that answers is paid by the ledger when it has; its signature and the answer's hash are checked before
    anything is printed. MODEL is a version, or a model: then its newest version answers.

    \b
    Examples:
      talkoo request digits --input @digit.json
      talkoo request digits@1 --input '[[0, 0, 5, 13]]' --most 0.05
      echo '[[0, 0, 5, 13]]' | talkoo request digits --input - -o json
    """
    from dataclasses import asdict

    from talkoo import render
    from talkoo_core.amounts import format_tlk

    inputs = read_input(given)
    client = session.client()
    answer = client.request(model, inputs if isinstance(inputs, list) else [inputs], most=most)
    if form != "table":
        render.print_data(asdict(answer), form)
        return
    click.echo(json.dumps(answer.outputs, ensure_ascii=False))
    click.echo(
        f"{answer.version}, answered and signed by {answer.node_name} for {format_tlk(answer.price_utlk)} "
        f"({answer.request_id})",
        err=True,
    )


def read_input(given: str) -> Any:
    """JSON from the argument itself, from `@file`, or from standard input (`-`). Raises InvalidInput or NotFound."""
    from talkoo_core.errors import InvalidInput, NotFound

    source, text = "--input", given
    if given == "-":
        source, text = "standard input", sys.stdin.read(MAX_INPUT_BYTES + 1)
    elif given.startswith("@"):
        source = given[1:]
        try:
            text = Path(source).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise NotFound(f"there is no file {source}; name one with --input @FILE") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{source} cannot be read as text: {error}") from None
    if len(text) > MAX_INPUT_BYTES:
        raise InvalidInput(f"{source} is over {MAX_INPUT_BYTES >> 20} MiB; send fewer inputs at a time")
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{source} is not JSON ({error}); write a list of inputs, e.g. [[1, 2]]") from None


@click.command(cls=Command)
@click.argument("to", shell_complete=completer("accounts"))
@click.argument("amount")
@click.option("--memo", default="", help="A note on the ledger, at most 256 bytes; anyone can read it.")
@click.pass_obj
def transfer(session: Session, to: str, amount: str, memo: str) -> None:
    """Transfer tokens to an account.

    TO is an address or a whole label; AMOUNT is in TLK, or in utlk when it says so.

    \b
    Examples:
      talkoo transfer bob 2.5
      talkoo transfer tlk1qqqsyqcyq5rqwzqfpg9scrgwpugpzysn0wl6r7 100utlk --as alice
    """
    from talkoo_core.amounts import format_tlk, parse_tlk

    amount_utlk = parse_tlk(amount)
    result = session.client().transfer(to, amount_utlk, memo)
    click.echo(f"{format_tlk(amount_utlk)} to {to} in block {result.height} (transaction {result.hash.hex()})")
