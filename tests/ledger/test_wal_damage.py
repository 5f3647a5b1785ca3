"""The write-ahead log with whole proposals in it, on disks that misbehave."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from talkoo_consensus.chain import genesis_state, make_block
from talkoo_consensus.encoding import block_id_of
from talkoo_consensus.events import ProposalReceived, Step, TimeoutElapsed, VoteReceived
from talkoo_consensus.types import EMPTY_COMMIT, Proposal, SignedType, Vote
from talkoo_consensus.validators import Validator
from talkoo_ledger.wal import Logged, WriteAheadLog, file_name

from talkoo_core.errors import Exhausted
from talkoo_runtime.disk import FolderDisk
from talkoo_sim.ledger_chain import key_of

HEIGHT = 1


def inputs() -> list[Logged]:
    key = key_of("north-consensus")
    chain = genesis_state("sim-1", 1, [Validator.of(key.public.raw, 10)], b"\x01" * 32)
    block = make_block(chain, [b"a transaction"], EMPTY_COMMIT, 5, key.public.address)
    block_id = block_id_of(block)
    vote = Vote(SignedType.PREVOTE, HEIGHT, 0, block_id, 7, key.public.address, 0, key.sign(b"vote"))
    return [
        ProposalReceived(Proposal(HEIGHT, 0, -1, block_id, 5, key.sign(b"proposal")), block, timely=False),
        VoteReceived(vote),
        TimeoutElapsed(HEIGHT, 0, Step.PREVOTE),
    ]


def written(folder: Path) -> WriteAheadLog:
    log = WriteAheadLog(FolderDisk(folder))
    log.begin(HEIGHT)
    for event in inputs():
        log.append(event)
    log.close()
    return log


def test_what_was_appended_is_replayed_in_order(tmp_path: Path) -> None:
    assert list(written(tmp_path).replay(HEIGHT)) == inputs()
    assert list(WriteAheadLog(FolderDisk(tmp_path)).replay(HEIGHT + 1)) == []


def test_zeros_behind_the_last_record_are_a_torn_tail(tmp_path: Path) -> None:
    """A file that was made longer before its data came to the disk."""
    written(tmp_path)
    path = tmp_path / file_name(HEIGHT)
    with path.open("ab") as file:
        file.write(bytes(4096))
    assert list(WriteAheadLog(FolderDisk(tmp_path)).replay(HEIGHT)) == inputs()


def test_a_full_disk_is_said_and_nothing_counts_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = WriteAheadLog(FolderDisk(tmp_path))
    log.begin(HEIGHT)
    log.append(inputs()[1])

    def full(_descriptor: int, _data: memoryview, _offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Exhausted, match="is full; free some space"):
        log.sync()
    monkeypatch.undo()
    log.close()
    assert list(log.replay(HEIGHT)) == inputs()[1:2]
