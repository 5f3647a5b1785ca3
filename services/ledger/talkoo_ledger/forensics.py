"""`python -m talkoo_ledger.forensics`: who broke the rules of consensus at a height.

export --state FOLDER --height N > north.json     on each node; stopped or running
accuse north.json east.json south.json            anywhere, with the files of as many nodes as can be had
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from talkoo_consensus.encoding import encode_vote

from talkoo_core.errors import NotFound, TalkooError
from talkoo_ledger.store import BlockStore
from talkoo_ledger.transcripts import Transcript, judge, read_transcript

STORE_FILE = "ledger.db"


@click.group()
def main() -> None:
    """Collect what nodes saw of a height, and name who broke the rules there."""


@main.command()
@click.option("--state", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--height", type=click.IntRange(min=1), required=True)
def export(state: Path, height: int) -> None:
    """Write this node's transcript of a height as JSON."""
    if not (state / STORE_FILE).is_file():
        raise NotFound(f"{state} holds no {STORE_FILE}: give the state_dir of a ledger node", code="no_store")
    store = BlockStore(state / STORE_FILE)
    try:
        click.echo(read_transcript(store, height).to_json())
    finally:
        store.close()


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def accuse(files: tuple[Path, ...]) -> None:
    """Judge the transcripts together. Leaves with 1 when the height has forked."""
    finding = judge([Transcript.from_json(path.read_text()) for path in files])
    click.echo(
        json.dumps(
            {
                "decided": [value.hex() for value in finding.decided],
                "accused_power": finding.accused_power,
                "total_power": finding.total_power,
                "unsigned_votes": finding.unsigned_votes,
                "accusations": [
                    {
                        "kind": each.kind,
                        "validator": each.validator_address.hex(),
                        "vote_a": encode_vote(each.vote_a).hex(),
                        "vote_b": encode_vote(each.vote_b).hex(),
                    }
                    for each in finding.accusations
                ],
            },
            indent=2,
        )
    )
    sys.exit(1 if len(finding.decided) > 1 else 0)


if __name__ == "__main__":
    try:
        main()
    except TalkooError as error:
        sys.exit(str(error))
