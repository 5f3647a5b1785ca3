"""The run's report: one HTML file that needs nothing else, and the training curve as a PNG."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from talkoo.demo.accounting import Table

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f4b; --bad: #c0392b; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
.lead { color: #777; margin-top: .2rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0; }
.fact { border: 1px solid var(--line); border-radius: .6rem; padding: .6rem 1rem; min-width: 9rem; }
.fact b { display: block; font-size: 1.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; }
td.proof { font-family: ui-monospace, monospace; font-size: .75rem; }
img { max-width: 100%; background: white; border-radius: .4rem; }
ol.story { padding-left: 0; list-style: none; }
ol.story li { padding: .15rem 0; } ol.story time { color: #888; display: inline-block; width: 5rem; }
li.bad { color: var(--bad); font-weight: 600; } li.good { color: var(--good); font-weight: 600; }
footer { margin: 3rem 0 1rem; color: #777; font-size: .85rem; }
"""


@dataclass(frozen=True, slots=True)
class StoryLine:
    """`at_s`: seconds since the demo began; `mood` is "", "good" or "bad"."""

    at_s: float
    text: str
    mood: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    story: Sequence[StoryLine]
    tables: Sequence[Table]
    checks: Table
    curve_png: bytes


def draw_curve(points: Sequence[tuple[int, float]], redone: Sequence[tuple[int, int]], title: str) -> bytes:
    """The loss over the steps as a PNG; `redone` are step ranges (first, behind the last) that were discarded once."""
    import io

    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4), dpi=120, layout="constrained")
    steps = [step for step, _ in points]
    axes.plot(steps, [loss for _, loss in points], color="#1f6feb", linewidth=1.6, label="loss (global batch)")
    for index, (first, behind) in enumerate(redone):
        label = "trained twice: the first try was forged" if index == 0 else None
        axes.axvspan(first, behind, color="#c0392b", alpha=0.12, label=label)
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def render_html(report: Report) -> str:
    facts = "".join(f'<div class="fact">{_text(name)}<b>{_text(value)}</b></div>' for name, value in report.facts)
    story = "".join(
        f'<li class="{line.mood}"><time>{line.at_s:.1f} s</time>{_text(line.text)}</li>' for line in report.story
    )
    picture = base64.b64encode(report.curve_png).decode()
    tables = "".join(_table(table) for table in (*report.tables, report.checks))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(report.title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{_text(report.title)}</h1><p class="lead">{_text(report.lead)}</p>'
        f'<div class="facts">{facts}</div>'
        f'<h2>The training curve</h2><img alt="Loss over the training steps" src="data:image/png;base64,{picture}">'
        f'<h2>What happened</h2><ol class="story">{story}</ol>{tables}'
        "<footer>Every figure above was read from the ledger or from blobs whose hashes stand on it.</footer>"
        "</body></html>\n"
    )


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.html` and `training-curve.png`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, picture = folder / "report.html", folder / "training-curve.png"
    picture.write_bytes(report.curve_png)
    page.write_text(render_html(report), encoding="utf-8")
    return page, picture


def _table(table: Table) -> str:
    numeric = [_is_numeric_column(table, column) for column in range(len(table.columns))]
    head = "".join(f"<th{_class(n, name)}>{_text(name)}</th>" for n, name in zip(numeric, table.columns, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{_class(n, name)}>{_text(cell)}</td>"
            for n, name, cell in zip(numeric, table.columns, row, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    note = f"<p>{_text(table.note)}</p>" if table.note else ""
    return (
        f'<h2>{_text(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _class(numeric: bool, column: str) -> str:
    if column == "proof":
        return ' class="proof"'
    return ' class="number"' if numeric else ""


def _is_numeric_column(table: Table, column: int) -> bool:
    cells = [row[column] for row in table.rows if row[column]]
    return bool(cells) and all(cell.lstrip("-")[:1].isdigit() for cell in cells)


def _text(value: str) -> str:
    return html.escape(value)
