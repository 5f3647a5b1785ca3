"""The command group: a table of commands, each loaded when it is called.

The table also holds the short helps, so that `talkoo --help` loads no command; a test holds them against the commands.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from talkoo.profile import HOME_VARIABLE
from talkoo.version import __version__

if TYPE_CHECKING:
    from talkoo.client import Client


@dataclass(frozen=True, slots=True)
class Entry:
    section: str
    module: str
    attribute: str
    short_help: str


COMMANDS: dict[str, Entry] = {
    "member": Entry("Federation", "talkoo.commands.member", "member", "List members, join, or leave."),
    "up": Entry("Federation", "talkoo.federation.commands", "up", "Start a federation on this machine."),
    "demo": Entry("Federation", "talkoo.demo.commands", "demo", "Run the whole loop once, with a cheater."),
    "doctor": Entry("Federation", "talkoo.federation.commands", "doctor", "Check this machine and the federation."),
    "submit": Entry("Work", "talkoo.commands.submit", "submit", "Submit a training task."),
    "tasks": Entry("Work", "talkoo.commands.listing", "tasks", "List tasks, or show one."),
    "logs": Entry("Work", "talkoo.commands.task", "logs", "Print what a task's nodes wrote."),
    "explain": Entry("Work", "talkoo.commands.task", "explain", "Say why a task waits, runs or failed."),
    "verify": Entry("Work", "talkoo.commands.task", "verify", "Check every proof of a task."),
    "cancel": Entry("Work", "talkoo.commands.task", "cancel", "Cancel a task."),
    "models": Entry("Models", "talkoo.commands.listing", "models", "List models, or show one."),
    "request": Entry("Models", "talkoo.commands.spend", "request", "Pay a model for an answer."),
    "nodes": Entry("Ledger", "talkoo.commands.listing", "nodes", "List nodes, or show one."),
    "accounts": Entry("Ledger", "talkoo.commands.listing", "accounts", "List accounts, or show one."),
    "payments": Entry("Ledger", "talkoo.commands.listing", "payments", "List payments and their proofs."),
    "blocks": Entry("Ledger", "talkoo.commands.listing", "blocks", "List blocks, or show one."),
    "transfer": Entry("Ledger", "talkoo.commands.spend", "transfer", "Transfer tokens to an account."),
    "light": Entry("Ledger", "talkoo.light.command", "light", "Follow a chain without trusting a node."),
}
SECTIONS = ("Work", "Models", "Ledger", "Federation")


class Session:
    """What the options before a command said; opens the client when the command asks for it."""

    def __init__(self) -> None:
        self.home: str | None = None
        self.user: str | None = None
        self._client: Client | None = None

    def client(self) -> Client:
        if self._client is None:
            from talkoo.client import Client

            self._client = Client(self.home, user=self.user)
            click.get_current_context().find_root().call_on_close(self._client.close)
        return self._client


class LazyGroup(click.Group):
    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        entry = COMMANDS.get(name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean `talkoo {close[0]}`?" if close else "`talkoo --help` lists the commands"
            ctx.fail(f"there is no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        for section in SECTIONS:
            rows = [(name, entry.short_help) for name, entry in COMMANDS.items() if entry.section == section]
            with formatter.section(section):
                formatter.write_dl(rows)


class Command(click.Command):
    """A command that also takes `--home` and `--as` after its name, where people tend to write them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [_home_option(), _user_option()]


def _keep(attribute: str) -> Any:
    def callback(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            setattr(ctx.ensure_object(Session), attribute, value)
            if attribute == "home":
                os.environ[HOME_VARIABLE] = value  # `talkoo --home X up` reads it there

    return callback


def _home_option() -> click.Option:
    return click.Option(
        ["--home"],
        metavar="FOLDER",
        expose_value=False,
        callback=_keep("home"),
        help="Folder of the profiles.  [default: $TALKOO_HOME, ./.talkoo or ~/.talkoo]",
    )


def _user_option() -> click.Option:
    return click.Option(
        ["--as", "user"],
        metavar="NAME",
        expose_value=False,
        callback=_keep("user"),
        shell_complete=_complete_user,
        help="Act as another user of the home.",
    )


def _complete_user(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    from talkoo.profile import home_folder, user_names

    session = ctx.find_object(Session)
    return [name for name in user_names(home_folder(session.home if session else None)) if name.startswith(incomplete)]


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"talkoo {__version__}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    params=[
        _home_option(),
        _user_option(),
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_print_version,
            help="Print the version.",
        ),
    ],
)
@click.pass_context
def talkoo(ctx: click.Context) -> None:
    """Train together, prove the training, be paid on a shared ledger.

    \b
    Examples:
      talkoo up                              start a federation on this machine
      talkoo submit task.yaml --watch        train, and watch it
      talkoo verify digits                   check every proof of the task
      talkoo request digits --input @x.json  pay the model for an answer
    """
    ctx.ensure_object(Session)
