"""The sign state over its life: what may leave when, a full file, an old copy, and what replay signs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from talkoo_consensus.events import Step, TimeoutElapsed, VoteReceived
from talkoo_consensus.types import BlockId, Proposal, SignedType, Vote
from talkoo_ledger.sign_state import FILE, KEPT, SLOT_BYTES, SLOTS, DoubleSignRefused, Signer
from talkoo_ledger.wal import WriteAheadLog

from talkoo_runtime.disk import FolderDisk
from talkoo_sim.ledger_chain import CHAIN_ID, key_of

KEY = key_of("south-consensus")
BLOCK, OTHER = BlockId(b"a" * 32, 1, b"b" * 32), BlockId(b"c" * 32, 1, b"d" * 32)


def vote(height: int, block: BlockId = BLOCK, round_: int = 0) -> Vote:
    return Vote(SignedType.PREVOTE, height, round_, block, 0, KEY.public.address, 0)


def opened(folder: Path) -> Signer:
    return Signer(KEY, CHAIN_ID, FolderDisk(folder))


def test_what_was_signed_may_leave_once_it_is_synced_with_one_sync_for_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = opened(tmp_path)
    assert not signer.unsynced
    synced: list[int] = []
    monkeypatch.setattr("os.fdatasync", synced.append)
    signer.sign_proposal(Proposal(5, 0, -1, BLOCK, 7))
    signer.sign_vote(vote(5), 7)
    assert signer.unsynced
    assert synced == []
    signer.sync()
    assert not signer.unsynced
    assert len(synced) == 1


def test_after_a_crash_what_stands_in_the_file_is_made_durable_before_it_leaves_again(tmp_path: Path) -> None:
    signer = opened(tmp_path)
    signer.sign_vote(vote(5), 7)
    signer.sync()
    assert opened(tmp_path).unsynced


def test_any_of_the_last_signatures_is_given_again_and_nothing_else_for_its_place(tmp_path: Path) -> None:
    signer = opened(tmp_path)
    made = [signer.sign_vote(vote(height), 7) for height in range(1, KEPT + 3)]
    signer.sync()
    again = opened(tmp_path)
    for old in made[-KEPT:]:
        assert again.sign_vote(replace(old, signature=b"", timestamp_ns=0), 99) == old
        with pytest.raises(DoubleSignRefused):
            again.sign_vote(vote(old.height, OTHER), 99)
    with pytest.raises(DoubleSignRefused):
        again.sign_vote(vote(1), 99)


def test_a_full_file_goes_on_with_the_last_signatures(tmp_path: Path) -> None:
    signer = opened(tmp_path)
    for height in range(1, SLOTS + 5):
        last = signer.sign_vote(vote(height), 7)
        signer.sync()
    assert (tmp_path / FILE).stat().st_size == SLOTS * SLOT_BYTES
    again = opened(tmp_path)
    assert again.last == (SLOTS + 4, 0, 2)
    assert again.sign_vote(vote(SLOTS + 4), 99) == last
    with pytest.raises(DoubleSignRefused):
        again.sign_vote(vote(SLOTS + 4, OTHER), 99)


async def test_a_node_with_an_old_copy_of_its_sign_state_learns_from_its_log_what_it_has_signed(ledgers: Any) -> None:
    """It died between the log and the sign state, or somebody put back an old file."""
    state = ledgers.folder / "south" / "state"
    known = Signer(KEY, CHAIN_ID, FolderDisk(ledgers.folder / "elsewhere")).sign_vote(vote(1, BlockId()), 7)
    log = WriteAheadLog(FolderDisk(state / "wal"))
    log.begin(1)
    log.append(TimeoutElapsed(1, 0, Step.PROPOSE))
    log.append(VoteReceived(known))
    log.close()
    ledgers.start("south")
    await ledgers.eventually(lambda: ready(ledgers, 1), "south is up")

    async def remembered() -> bool:
        return opened(state).last >= (1, 0, 2)

    await ledgers.eventually(remembered, "the sign state has caught up with the log")
    ledgers.stop("south")
    assert opened(state).sign_vote(vote(1, BlockId()), 99) == known


async def test_what_is_signed_for_the_first_time_during_replay_is_logged(ledgers: Any) -> None:
    """The process died between logging a timeout and the vote that follows from it."""
    state = ledgers.folder / "south" / "state"
    log = WriteAheadLog(FolderDisk(state / "wal"))
    log.begin(1)
    log.append(TimeoutElapsed(1, 0, Step.PROPOSE))
    log.close()

    async def logged() -> Any:
        events = WriteAheadLog(FolderDisk(state / "wal")).replay(1)
        own = [e.vote for e in events if isinstance(e, VoteReceived) and e.vote.validator_address == KEY.public.address]
        return own or None

    ledgers.start("south")
    (signed,) = await ledgers.eventually(logged, "the vote of the replay is in the log")
    assert signed.type is SignedType.PREVOTE
    await ledgers.eventually(lambda: ready(ledgers, 1), "south is up")
    ledgers.stop("south")
    # The next start feeds it as logged, and signs nothing else for its place.
    ledgers.start("south")
    await ledgers.eventually(lambda: ready(ledgers, 2), "south is up again")
    ledgers.stop("south")
    assert (await logged())[0] == signed
    assert opened(state).sign_vote(replace(signed, signature=b"", timestamp_ns=0), 1) == signed


async def ready(ledgers: Any, times: int) -> bool:
    return bool(ledgers.log("south").count("ready ledger") >= times)
