"""`talkoo light`: follow a chain without trusting a node, and check single values by proof."""

from __future__ import annotations

import re
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from talkoo.commands.group import Command
from talkoo.commands.listing import format_option

if TYPE_CHECKING:
    from talkoo_consensus.light import LightBlock

    from talkoo.light.client import LightClient, Proven

MODULES = {
    "account": "accounts",
    "task": "tasks",
    "model": "models",
    "node": "nodes",
    "organization": "organizations",
    "segment": "segments",
    "payment": "payments",
    "request": "requests",
}
FOLLOW_EVERY_S = 1.0
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@click.command(cls=Command)
@click.argument("what", required=False, type=click.Choice(sorted(MODULES)))
@click.argument("name", required=False)
@click.option("--primary", metavar="URL", required=True, help="RPC of the node that is asked.")
@click.option("--witness", "witnesses", metavar="URL", multiple=True, help="RPC of a node to compare with; repeat it.")
@click.option("--trusted-height", type=int, default=0, metavar="N", help="Height of a header you trust.")
@click.option("--trusted-hash", default="", metavar="HEX", help="Its hash.")
@click.option("--trust-period", default="168h", show_default=True, help="How long a header is trusted (s, m, h or d).")
@click.option("--trust-level", default="1/3", show_default=True, help="Share of trusted power that must have signed.")
@click.option("--max-clock-drift", default="10s", show_default=True, help="How far clocks may differ.")
@click.option("--sequential", is_flag=True, help="Verify every header, not only those that are needed.")
@click.option("--once", is_flag=True, help="End with the newest header instead of following.")
@click.option("--store", type=click.Path(path_type=Path), help="Folder of verified headers. [default: ~/.talkoo/light]")
@format_option
def light(
    what: str | None, name: str | None, primary: str, witnesses: tuple[str, ...], form: str, **given: Any
) -> None:
    """Follow a chain without trusting a node.

    Headers are verified from one that you trust; with WHAT and NAME a value of the ledger is checked by its proof.

    \b
    Examples:
      talkoo light --primary http://north:26657 --witness http://east:26657 --trusted-height 1 --trusted-hash 9A…
      talkoo light account tlk1… --primary http://north:26657 --witness http://east:26657
      talkoo light model digits@1 --primary http://north:26657 -o json
    """
    if (what is None) != (name is None):
        raise click.UsageError("name what is to be checked and which: talkoo light account tlk1…")
    client = _client(primary, witnesses, given)
    if given["trusted_height"]:
        client.begin(given["trusted_height"], _hash(given["trusted_hash"]))
    elif given["trusted_hash"]:
        raise click.UsageError("--trusted-hash needs --trusted-height")
    if what is not None and name is not None:
        _show(client.prove(MODULES[what], _key(what, name)), form)
        return
    _follow(client, form, once=given["once"])


def _client(primary: str, witnesses: tuple[str, ...], given: dict[str, Any]) -> LightClient:
    from talkoo_consensus.light import TrustOptions

    from talkoo.light.client import LightClient
    from talkoo.light.provider import Provider
    from talkoo.light.store import LightStore

    folder = given["store"] or Path.home() / ".talkoo" / "light"
    options = TrustOptions(
        _duration_ns(given["trust_period"], "--trust-period"),
        _fraction(given["trust_level"]),
        _duration_ns(given["max_clock_drift"], "--max-clock-drift"),
    )
    others = [Provider(url) for url in dict.fromkeys(witnesses) if url != primary]
    if not others:
        click.echo("note: without a --witness on another machine a primary that lies is not found out", err=True)
    return LightClient(Provider(primary), others, LightStore(folder), options, folder, given["sequential"])


def _follow(client: LightClient, form: str, *, once: bool) -> None:
    shown = 0
    while True:
        block = client.update()
        if block.height > shown:
            shown = block.height
            _show_header(block, form)
        if once:
            return
        time.sleep(FOLLOW_EVERY_S)


def _show_header(block: LightBlock, form: str) -> None:
    from talkoo.render import print_data, time_text

    found = {
        "height": block.height,
        "hash": block.hash.hex(),
        "time": time_text(block.header.time_ns),
        "app_hash": block.header.app_hash.hex(),
        "validators": len(block.validators),
    }
    if form == "table":
        click.echo(f"verified {found['height']}  {found['hash']}  {found['time']}  {found['validators']} validators")
    else:
        print_data(found, form)


def _show(proven: Proven, form: str) -> None:
    from talkoo_ledger.wire import record_proto

    from talkoo import render

    proof = {
        "height": proven.height,
        "header_height": proven.header_height,
        "header_hash": proven.header_hash.hex(),
    }
    if proven.value is None:
        render.print_data(
            {"module": proven.module, "key": proven.key, "exists": False, "proof": proof},
            "yaml" if form == "table" else form,
        )
        return
    render.show_one(record_proto(proven.module, proven.value), form, {"proof": proof})


def _key(what: str, name: str) -> str:
    """The key in the state: versions of a model are written with six digits there, and payments with twelve."""
    if what == "model":
        model, _, number = name.rpartition("@")
        if not model or not number.isdecimal():
            raise click.UsageError(f"{name!r} is not a version of a model; one looks like digits@1")
        return f"{model}@{int(number):06d}"
    if what == "payment":
        if not name.isdecimal():
            raise click.UsageError(f"{name!r} is not the number of a payment")
        return f"{int(name):012d}"
    return name


def _hash(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise click.UsageError("--trusted-hash takes the 64 hex digits of a header's hash")
    return bytes.fromhex(text)


def _duration_ns(text: str, option: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is None:
        raise click.UsageError(f"{option} takes a number with s, m, h or d, such as 168h; this is {text!r}")
    return int(match[1]) * _UNITS[match[2]] * 10**9


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise click.UsageError(f"--trust-level takes a fraction such as 1/3; this is {text!r}") from None
