"""`talkoo up` and `talkoo doctor`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from talkoo_core.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import Console

    from talkoo.federation.plan import FederationPlan
    from talkoo.federation.runner import Federation

DEFAULT_HOME = ".talkoo"


def _home(given: Path | None) -> Path:
    return (given or Path(os.environ.get("TALKOO_HOME", DEFAULT_HOME))).absolute()


def _forgers(pairs: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for pair in pairs:
        name, _, segment = pair.partition(":")
        if not segment.isdigit():
            raise InvalidInput(f"--forge {pair!r}: write NODE:SEGMENT, for example west-1:2")
        found[name] = int(segment)
    return found


@click.command(
    epilog="Examples:\n\n  talkoo up\n\n  talkoo up --home /var/lib/talkoo\n\n"
    "  talkoo up --forge west-1:1   (a cheater, to watch)"
)
@click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), help="Folder with all state.  [default: .talkoo]"
)
@click.option(
    "--forge", multiple=True, metavar="NODE:SEGMENT", help="Let a node forge from a segment on. Only for a new home."
)
@click.option(
    "--metrics", is_flag=True, help="Serve metrics; Prometheus takes its settings from prometheus.yml in home."
)
def up(home: Path | None, forge: tuple[str, ...], metrics: bool) -> None:
    """Start a federation of four organizations on this machine, and stay. Ctrl-C stops it; nothing is lost."""
    from rich.console import Console

    from talkoo.federation.plan import PLAN_FILE, default_plan

    folder = _home(home)
    if forge and (folder / PLAN_FILE).exists():
        raise InvalidInput(f"{folder} already holds a federation; --forge needs a new --home")
    plan = default_plan(_forgers(forge)) if forge else None
    asyncio.run(_stay(folder, plan, Console(highlight=False), metrics))


async def _stay(home: Path, plan: FederationPlan | None, console: Console, metrics: bool) -> None:
    from rich.markup import escape

    from talkoo.federation.runner import Federation

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    began = loop.time()
    console.print(f"Starting a federation in {home}")
    federation = Federation(
        home,
        plan,
        on_crash=lambda sentence: console.print(f"[red]crash[/] {escape(sentence)}", soft_wrap=True),
        metrics=metrics,
    )
    async with federation:
        starting = asyncio.create_task(_start(federation, console, began))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await starting
            await stop.wait()
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        console.print("Stopping; `talkoo up` goes on from here")


async def _start(federation: Federation, console: Console, began: float) -> None:
    """Until the federation takes tasks, telling what serves."""
    from talkoo.client_async import AsyncClient

    now = asyncio.get_running_loop().time

    def say(name: str) -> None:
        done, total = federation.counted()
        console.print(f"  {now() - began:5.1f} s  {name} serves ({done}/{total})")

    await federation.ready(say)
    async with AsyncClient(federation.home) as client:
        await federation.takes_tasks(client)
    _invite(federation.home, console, now() - began)


def _invite(home: Path, console: Console, seconds: float) -> None:
    option = "" if home == Path(DEFAULT_HOME).absolute() else f" --home {home}"
    console.print(
        f"\n[green]The federation takes tasks[/] after {seconds:.1f} s. In another terminal:\n"
        f"  talkoo nodes{option}\n"
        f"  talkoo submit examples/digits/task.yaml --watch{option}\n"
        "Ctrl-C stops it."
    )
    sys.stdout.flush()


@click.command(epilog="Examples:\n\n  talkoo doctor\n\n  talkoo doctor --home /var/lib/talkoo")
@click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), help="Folder with all state.  [default: .talkoo]"
)
def doctor(home: Path | None) -> int:
    """Check this machine and the federation, and say what to do. Ends with status 1 when something is wrong."""
    from rich.console import Console
    from rich.markup import escape

    from talkoo.federation.doctor import OK, WRONG, federation_checks, machine_checks

    folder = _home(home)
    console = Console(highlight=False)
    checks = [*machine_checks(folder), *asyncio.run(federation_checks(folder, None))]
    signs = {OK: "[green]ok[/]     ", WRONG: "[red]wrong[/]  "}
    for check in checks:
        sign = signs.get(check.state, "[yellow]warning[/]")
        console.print(f"{sign} {check.name:<11} {escape(check.detail)}", soft_wrap=True)
        if check.remedy:
            console.print(f"{'':19} → {escape(check.remedy)}", soft_wrap=True)
    return 1 if any(check.state == WRONG for check in checks) else 0
