"""Write the table of values in helm/talkoo/README.md from values.yaml, or with --check say whether it is stale.

A value is a line `key: value` there, explained by the comment above it that begins with `# -- `. A value that nothing
explains is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent.parent / "helm" / "talkoo"
BEGIN, END = "<!-- values -->", "<!-- /values -->"
INDENT = 2
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):(?: (.*))?$")


@dataclass(frozen=True, slots=True)
class Value:
    """One row: `ledger.engine`, what it is where nobody says otherwise, and what it means."""

    name: str
    default: str
    meaning: str


def values(text: str) -> Iterator[Value]:
    """In the order of the file. Raises ValueError naming the line that is wrong."""
    path: list[str] = []
    comment: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = [stripped.removeprefix("# -- ")]
        elif stripped.startswith("#") and comment:
            comment.append(stripped.removeprefix("#").strip())
        elif match := _KEY.fullmatch(line):
            depth = len(match[1]) // INDENT
            path = [*path[:depth], match[2]]
            if match[3] is not None:
                if not comment:
                    raise ValueError(
                        f"values.yaml:{number}: nothing explains {'.'.join(path)}; write `# -- …` above it"
                    )
                yield Value(".".join(path), json.dumps(yaml.safe_load(match[3]), ensure_ascii=False), " ".join(comment))
            comment = []
        elif stripped and not stripped.startswith("#"):
            raise ValueError(f"values.yaml:{number}: {stripped!r} is no `key: value`; write lists and maps on one line")
        else:
            comment = []


def table(text: str) -> str:
    rows = [f"| `{v.name}` | `{v.default}` | {v.meaning.replace('|', chr(92) + '|')} |" for v in values(text)]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows])


def fresh(readme: str, text: str) -> str:
    """The page with the table as values.yaml gives it. Raises ValueError where the page has no place for it."""
    if BEGIN not in readme or END not in readme:
        raise ValueError(f"README.md: the lines {BEGIN} and {END} are missing")
    head, tail = readme.split(BEGIN)[0], readme.split(END)[1]
    return f"{head}{BEGIN}\n{table(text)}\n{END}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the page is stale")
    check = parser.parse_args().check
    page = CHART / "README.md"
    readme = page.read_text(encoding="utf-8")
    try:
        wanted = fresh(readme, (CHART / "values.yaml").read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if readme == wanted:
        return 0
    if check:
        print("stale: helm/talkoo/README.md; run tools/generate_chart_docs.py")
        return 1
    page.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
