"""`talkoo submit --watch` on a terminal, and as plain lines where there is none."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from talkoo_api.ledger.v1 import service_pb2

from talkoo.render import phase_word
from talkoo.watching import Sight
from talkoo_core.amounts import format_tlk

if TYPE_CHECKING:
    from rich.console import RenderableType

NEWS_SHOWN = 8
REFRESH_PER_SECOND = 8
PLAIN_STEPS = 10
"""Without a terminal a line of progress is written at least this many steps apart."""


def show(sights: Iterable[Sight]) -> None:
    """Draw a task until it has ended; the last lines stay."""
    if sys.stdout.isatty():
        _show_live(sights)
    else:
        _show_plain(sights)


def news_line(sight: Sight, event: service_pb2.Event) -> str:
    """One event of the ledger as a person reads it; empty for those that only matter to programs."""
    said = {attribute.key: attribute.value for attribute in event.attributes}
    segment = f"segment {said['segment']}" if said.get("segment") else "a segment"

    def names(ids: str) -> str:
        return ", ".join(sight.nodes.get(node, node) for node in ids.split(",") if node) or "nobody"

    def amount(key: str) -> str:
        return format_tlk(int(said[key])) if said.get(key, "").isdigit() else "some tokens"

    match event.type:
        case "task_created":
            return f"funded with {amount('escrow_utlk')}"
        case "task_placed":
            again = f" (attempt {said['attempt']})" if said.get("attempt", "1") != "1" else ""
            return f"placed on {names(said.get('nodes', ''))}{again}: {said.get('reason', '')}".rstrip(": ")
        case "audit_opened":
            return f"{segment} is opened: validators compute it again"
        case "verdict" if said.get("outcome") == "forged":
            return f"{segment}: forged by {names(said.get('forgers', ''))}"
        case "verdict":
            return f"{segment}: found {said.get('outcome', 'decided')}"
        case "segment_discarded":
            return f"{segment} is discarded: {said.get('reason', '')}".rstrip(": ")
        case "slashed":
            return f"{sight.nodes.get(event.subject, event.subject)} is slashed by {amount('amount_utlk')}"
        case "task_completed":
            return f"completed: {said.get('model_version', '')}"
        case "task_failed":
            return f"failed: {said.get('message', said.get('kind', ''))}"
        case "task_cancelled":
            return "cancelled"
        case _:
            return ""


def status_line(sight: Sight) -> str:
    """Phase, steps, loss, segments and money in one line."""
    task = sight.task
    parts = [phase_word(task)]
    if sight.progress is not None and not sight.ended:
        update = sight.progress
        parts.append(f"step {update.step}/{update.steps}" if update.step else update.stage)
        if update.step:
            parts.append(f"loss {update.loss:.4f}")
        if update.samples_per_second:
            parts.append(f"{update.samples_per_second:,.0f} samples/s")
    parts.append(
        f"segments {sight.committed} committed, {sight.audited} opened, {sight.accepted}/{sight.segments} accepted"
    )
    parts.append(f"{format_tlk(task.spent_utlk)} spent")
    return " · ".join(parts)


def ending_line(sight: Sight) -> str:
    task = sight.task
    if task.model_version:
        return f"{task.model_version} is registered; {format_tlk(task.spent_utlk)} spent"
    return f"the task ended as {phase_word(task)}; {format_tlk(task.spent_utlk)} spent"


def _show_plain(sights: Iterable[Sight]) -> None:
    """A line per event, and progress when it has moved on: made for logs."""
    from click import echo

    last_step = -PLAIN_STEPS
    attempt = 0
    last: Sight | None = None
    for sight in sights:
        last = sight
        for line in filter(None, (news_line(sight, event) for event in sight.news)):
            echo(line)
        update = sight.progress
        if update is not None and (update.attempt != attempt or update.step >= last_step + PLAIN_STEPS):
            last_step, attempt = update.step, update.attempt
            echo(status_line(sight))
    if last is not None:
        echo(ending_line(last))


def _show_live(sights: Iterable[Sight]) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    news: deque[str] = deque(maxlen=NEWS_SHOWN)
    last: Sight | None = None
    with Live(console=console, refresh_per_second=REFRESH_PER_SECOND, transient=False) as live:
        for sight in sights:
            last = sight
            news.extend(filter(None, (news_line(sight, event) for event in sight.news)))
            live.update(_picture(sight, list(news)))
    if last is not None:
        style = "bold green" if last.task.model_version else "bold red"
        console.print(ending_line(last), style=style, highlight=False)


def _picture(sight: Sight, news: list[str]) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    task = sight.task
    bars = Table.grid(padding=(0, 2))
    bars.add_column(justify="right", style="dim")
    bars.add_column(width=40)
    bars.add_column()
    step = min(task.next_segment * task.spec.steps_per_segment, task.spec.steps)
    said = ""
    if sight.progress is not None:
        step = max(step, sight.progress.step)
        said = f"  loss {sight.progress.loss:.4f}" if sight.progress.step else f"  {sight.progress.stage}"
    bars.add_row("steps", ProgressBar(task.spec.steps, step), f"{step}/{task.spec.steps}{said}")
    counts = f"{sight.accepted}/{sight.segments} accepted, {sight.audited} opened"
    if sight.discarded:
        counts += f", {sight.discarded} discarded"
    bars.add_row("segments", ProgressBar(sight.segments, sight.accepted), counts)
    funded = max(task.escrow_utlk + task.spent_utlk, 1)
    bars.add_row("money", ProgressBar(funded, task.spent_utlk), f"{format_tlk(task.spent_utlk)} spent")
    placed = ", ".join(f"{sight.nodes.get(shard.node_id, shard.node_id)} ({shard.samples})" for shard in task.shards)
    lines: list[RenderableType] = [Text(placed or "waits for a placement", style="cyan" if placed else "yellow"), bars]
    lines += [Text(f"· {line}", style="red" if "forged" in line or "slashed" in line else "") for line in news]
    return Panel(Group(*lines), title=f"{task.spec.name} · {phase_word(task)}", title_align="left", width=100)
