"""The command `talkoo`: arguments in, exit status out.

Light on purpose: `--version` loads nothing, `--help` only click, and each command what it needs (`talkoo.commands`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from talkoo.version import __version__

if TYPE_CHECKING:
    from talkoo_core.errors import TalkooError

TRACEBACK_VARIABLE = "TALKOO_TRACEBACK"
INTERRUPTED = 130
PIPE_CLOSED = 141
USAGE = 2
OUR_FAULT = 70


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script. Ends the process with the exit status of the command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"talkoo {__version__}")  # noqa: T201  # before click is loaded: this is the instant path
        return
    sys.exit(run(given))


def run(arguments: list[str]) -> int:
    """Run one command. Every failure is one line on stderr and a status of its own; see docs/cli.md."""
    import click

    from talkoo.commands.group import talkoo
    from talkoo_core.errors import TalkooError

    try:
        status = talkoo.main(args=arguments, prog_name="talkoo", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except click.ClickException as error:
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`talkoo tasks | head`). Python must not complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except TalkooError as error:
        return _report(error)
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        _error_line(
            f"this is a fault of talkoo: {type(error).__name__}: {error}; "
            f"run it again with {TRACEBACK_VARIABLE}=1 and report what it prints"
        )
        return OUR_FAULT
    return status if isinstance(status, int) else 0


def _report(error: TalkooError) -> int:
    if os.environ.get(TRACEBACK_VARIABLE):
        import traceback

        traceback.print_exception(error)
    _error_line(error.message)
    return error.exit_status


def _error_line(message: str) -> None:
    import click

    click.echo(click.style("error:", fg="red", bold=True) + " " + " ".join(message.split()), err=True)


if __name__ == "__main__":
    main()
