"""What nodes keep of the votes of a height, and what is told from it when two of them have decided differently."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from talkoo_consensus.accountability import AMNESIA
from talkoo_consensus.chain import make_block
from talkoo_consensus.encoding import block_id_of, decode_commit
from talkoo_consensus.types import BlockId, BlockIdFlag, Commit, CommitSig, SignedType, Vote
from talkoo_ledger import store
from talkoo_ledger.executor import Executor
from talkoo_ledger.forensics import main
from talkoo_ledger.transcripts import (
    MAX_VOTES,
    Transcript,
    decode_transcript,
    encode_transcript,
    judge,
    read_transcript,
)

from talkoo_core.errors import Conflict, Corrupt, InvalidInput, NotFound
from talkoo_runtime.clock import SystemClock
from talkoo_sim.consensus_table import CHAIN_ID, Table
from talkoo_sim.ledger_chain import make_genesis
from talkoo_sim.ledger_processes import Ledgers

PREVOTE, PRECOMMIT = SignedType.PREVOTE, SignedType.PRECOMMIT


@pytest.fixture
def table() -> Table:
    return Table()


def fork(table: Table) -> tuple[Transcript, Transcript]:
    """One node decided in round 0 and saw no more; the other locked nothing and decided another block in round 1."""
    first, second = block_id_of(table.block(b"a")), block_id_of(table.block(b"b"))
    ours = [table.vote(index, PRECOMMIT, first, 0) for index in (0, 1, 2)]
    theirs = [table.vote(index, PREVOTE, None, 0) for index in (0, 1, 3)]
    theirs += [table.vote(index, type_, second, 1) for type_ in (PREVOTE, PRECOMMIT) for index in (0, 1, 3)]
    return _of(table, ours), _of(table, theirs)


def _of(table: Table, votes: Sequence[Vote]) -> Transcript:
    return Transcript(CHAIN_ID, 1, table.validators, tuple(votes))


def addresses(table: Table, *indices: int) -> set[bytes]:
    return {table.validators.validators[index].address for index in indices}


def test_two_transcripts_of_a_fork_name_a_third_of_the_power_and_neither_node(table: Table) -> None:
    ours, theirs = fork(table)
    assert judge([ours]).accusations == judge([theirs]).accusations == ()
    finding = judge([ours, theirs])
    assert len(finding.decided) == 2
    assert {each.validator_address for each in finding.accusations if each.kind == AMNESIA} == addresses(table, 0, 1)
    assert {each.validator_address for each in finding.accusations} == addresses(table, 0, 1)
    assert 3 * finding.accused_power >= finding.total_power


def test_the_command_says_it_as_json_and_leaves_with_one(table: Table, tmp_path: Path) -> None:
    files = []
    for name, transcript in zip(("ours", "theirs"), fork(table), strict=True):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(transcript.to_json())
    result = CliRunner().invoke(main, ["accuse", *map(str, files)])
    assert result.exit_code == 1
    said = json.loads(result.output)
    assert {bytes.fromhex(each["validator"]) for each in said["accusations"]} == addresses(table, 0, 1)
    assert (said["accused_power"], said["total_power"], len(said["decided"])) == (20, 40, 2)
    alone = CliRunner().invoke(main, ["accuse", str(files[0])])
    assert alone.exit_code == 0
    assert json.loads(alone.output)["accusations"] == []


def test_votes_that_nobody_signed_accuse_nobody(table: Table) -> None:
    ours, theirs = fork(table)
    forged = [
        replace(table.vote(3, PREVOTE, block_id_of(table.block(text)), 4), signature=bytes(64)) for text in (b"x", b"y")
    ]
    stranger = [replace(vote, validator_address=bytes(20)) for vote in forged]
    other_height = [table.vote(3, PREVOTE, block_id_of(table.block(text)), 4, height=2) for text in (b"x", b"y")]
    finding = judge([ours, theirs, _of(table, [*forged, *stranger, *other_height])])
    assert finding.unsigned_votes == 6
    assert {each.validator_address for each in finding.accusations} == addresses(table, 0, 1)


def test_transcripts_of_other_heights_chains_or_validators_are_not_judged_together(table: Table) -> None:
    ours, _ = fork(table)
    for other in (
        replace(ours, height=2),
        replace(ours, chain_id="another"),
        replace(ours, validators=Table((10, 10, 10, 11)).validators),
    ):
        with pytest.raises(Conflict):
            judge([ours, other])
    with pytest.raises(InvalidInput):
        judge([])


def test_transcripts_read_back_and_damage_is_told(table: Table) -> None:
    for transcript in fork(table):
        again = Transcript.from_json(transcript.to_json())
        assert (again.votes, again.height, again.chain_id) == (transcript.votes, 1, CHAIN_ID)
        assert decode_transcript(encode_transcript(transcript.votes)) == transcript.votes
        for damaged in (transcript.to_json()[:-9], "{}", "[]", transcript.to_json().replace("votes", "vote")):
            with pytest.raises(Corrupt) as error:
                Transcript.from_json(damaged)
            assert error.value.code == "bad_transcript"
    vote = table.vote(0, PREVOTE, None)
    assert len(decode_transcript(encode_transcript([vote] * (MAX_VOTES + 5)))) == MAX_VOTES


def decide(executor: Executor, votes: Sequence[Vote]) -> None:
    chain = executor.chain
    block = make_block(chain, [], executor.last_commit(), chain.last_time_ns + 1_000, chain.validators.proposer.address)
    block_id: BlockId = block_id_of(block)
    places = tuple(CommitSig(BlockIdFlag.COMMIT, v.address, 1, bytes(64)) for v in chain.validators.validators)
    executor.execute(1, block_id, block, Commit(chain.height, 1, block_id, places), votes)


def test_a_node_keeps_the_votes_of_heights_with_several_rounds_and_not_for_ever(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "TRANSCRIPTS_KEPT", 3)
    executor = Executor(make_genesis(), tmp_path, SystemClock())
    votes = [table.vote(0, PREVOTE, None)]
    for height in range(1, 7):
        decide(executor, votes if height != 5 else [])
    kept = [height for height in range(1, 7) if executor.store.transcript(height) is not None]
    assert kept == [4, 6]
    assert read_transcript(executor.store, 6).votes[0] == votes[0]
    assert len(read_transcript(executor.store, 5).votes) == 4, "the commit alone"
    with pytest.raises(NotFound):
        read_transcript(executor.store, 7)


def test_a_folder_without_a_store_is_told_and_stays_as_it_was(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", "--state", str(tmp_path), "--height", "1"])
    assert isinstance(result.exception, NotFound)
    assert list(tmp_path.iterdir()) == []


async def test_real_nodes_without_their_proposer_keep_transcripts_that_accuse_nobody(
    ledgers: Ledgers, tmp_path: Path
) -> None:
    running = ledgers.names[:3]
    ledgers.start(*running)
    await ledgers.reach(10, *running)
    blocks = await ledgers.blocks(running[0])
    height = next(raw.height for raw in blocks if decode_commit(raw.commit).round > 0)
    files = []
    for name in running:  # while the nodes run
        exported = CliRunner().invoke(
            main, ["export", "--state", str(ledgers.folder / name / "state"), "--height", str(height)]
        )
        assert exported.exit_code == 0, exported.output
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(exported.output)
        votes = Transcript.from_json(exported.output).votes
        assert {vote.round for vote in votes} >= {0, 1}
        assert {vote.type for vote in votes} == {PREVOTE, PRECOMMIT}
    judged = CliRunner().invoke(main, ["accuse", *map(str, files)])
    assert judged.exit_code == 0, judged.output
    said = json.loads(judged.output)
    assert (said["accusations"], said["accused_power"], said["unsigned_votes"]) == ([], 0, 0)
    assert said["decided"] == [decode_commit(blocks[height - 1].commit).block_id.hash.hex()]
