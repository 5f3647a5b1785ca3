"""What the demo shows while it runs: a line for each thing that happens, and one bar for the training.

On a terminal the bar stays at the bottom; elsewhere only the lines are printed, so that a log stays readable.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from talkoo.demo.accounting import Table
from talkoo.demo.report import StoryLine

_STYLES = {"": "", "good": "green", "bad": "bold red", "head": "bold cyan"}


class Scene:
    """Prints the story and keeps it for the report."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lines: list[StoryLine] = []
        self._began = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=36),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Scene:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def chapter(self, title: str) -> None:
        self.console.print(Text(f"\n{title}", style=_STYLES["head"]))

    def say(self, text: str, mood: str = "") -> None:
        """One line of the story, with the seconds since the beginning."""
        line = StoryLine(self.seconds, text, mood)
        self.lines.append(line)
        self.console.print(
            Text.assemble((f"{line.at_s:6.1f} s  ", "dim"), (text, _STYLES[mood])),
            soft_wrap=not self.console.is_terminal,
        )

    def progress(self, description: str, done: int, total: int, detail: str = "") -> None:
        if self._task is None:
            self._task = self._bar.add_task(description, total=total, detail=detail)
        self._bar.update(self._task, description=description, completed=done, total=total, detail=detail)

    def no_progress(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def table(self, table: Table) -> None:
        rich = RichTable(
            title=table.title, title_justify="left", title_style="bold cyan", header_style="bold", box=SIMPLE_HEAD
        )
        for index, column in enumerate(table.columns):
            numeric = bool(table.rows) and all(row[index][:1].isdigit() for row in table.rows if row[index])
            rich.add_column(column, justify="right" if numeric else "left")
        for row in table.rows:
            strong = row[0] in ("sum", "issued")
            rich.add_row(*row, style="bold" if strong else ("red" if "slashed" in row[-1] else ""))
        self.console.print()
        self.console.print(rich)
        if table.note:
            self.console.print(Text(table.note, style="dim"))
