"""What a crash may leave behind, and what must never be signed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from talkoo_consensus.events import Step, TimeoutElapsed, VoteReceived
from talkoo_consensus.types import BlockId, Proposal, SignedType, Vote
from talkoo_consensus.validators import Validator
from talkoo_consensus.verify import verify_vote
from talkoo_ledger.sign_state import DoubleSignRefused, Signer
from talkoo_ledger.wal import WriteAheadLog, file_name

from talkoo_core.errors import Corrupt
from talkoo_core.signing import PrivateKey
from talkoo_runtime.disk import FolderDisk

KEY = PrivateKey.from_seed(bytes(range(32)))
BLOCK, OTHER = BlockId(b"a" * 32, 1, b"b" * 32), BlockId(b"c" * 32, 1, b"d" * 32)
CHAIN = "town-1"


def vote(height: int = 5, round_: int = 0, type_: SignedType = SignedType.PREVOTE, block: BlockId = BLOCK) -> Vote:
    return Vote(type_, height, round_, block, 0, KEY.public.address, 0)


def signed(height: int = 5, round_: int = 0) -> Vote:
    return replace(vote(height, round_), timestamp_ns=7, signature=b"s" * 64)


LOGGED = [
    VoteReceived(signed()),
    TimeoutElapsed(5, 0, Step.PROPOSE),
    VoteReceived(signed(round_=1)),
    TimeoutElapsed(5, 1, Step.PRECOMMIT),
]


def written(folder: Path) -> Path:
    log = WriteAheadLog(FolderDisk(folder))
    log.begin(5)
    for event in LOGGED:
        log.append(event)
    log.close()
    return folder / file_name(5)


def test_inputs_come_back_in_order(tmp_path: Path) -> None:
    written(tmp_path)
    assert list(WriteAheadLog(FolderDisk(tmp_path)).replay(5)) == LOGGED
    assert list(WriteAheadLog(FolderDisk(tmp_path)).replay(6)) == []


def test_nothing_reaches_the_file_before_it_is_synced(tmp_path: Path) -> None:
    log = WriteAheadLog(FolderDisk(tmp_path))
    log.begin(5)
    log.append(LOGGED[0])
    assert (tmp_path / file_name(5)).read_bytes() == b""
    log.sync()
    assert list(WriteAheadLog(FolderDisk(tmp_path)).replay(5)) == LOGGED[:1]
    log.close()


def test_the_next_height_removes_the_logs_before_it(tmp_path: Path) -> None:
    written(tmp_path)
    log = WriteAheadLog(FolderDisk(tmp_path))
    log.begin(6)
    log.close()
    assert [p.name for p in tmp_path.iterdir()] == [file_name(6)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_a_torn_tail_is_dropped_and_the_log_goes_on(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    log = WriteAheadLog(FolderDisk(tmp_path))
    kept = list(log.replay(5))
    assert kept == LOGGED[: len(kept)]
    log.begin(5)
    log.append(LOGGED[0])
    log.close()
    assert list(WriteAheadLog(FolderDisk(tmp_path)).replay(5)) == [*kept, LOGGED[0]]
    path.unlink()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_damage_in_the_middle_refuses_to_start_and_says_where(tmp_path: Path, data: st.DataObject) -> None:
    """Any byte of the first record, its length too: whole records behind it tell it from a torn tail."""
    path = written(tmp_path)
    whole = bytearray(path.read_bytes())
    first_record = 8 + int.from_bytes(whole[:4], "big")
    place = data.draw(st.integers(0, first_record - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with pytest.raises(Corrupt) as caught:
        list(WriteAheadLog(FolderDisk(tmp_path)).replay(5))
    assert f"{path} is damaged at byte 0" in caught.value.message
    path.unlink()


def signer(folder: Path) -> Signer:
    return Signer(KEY, CHAIN, FolderDisk(folder))


def test_a_vote_is_signed_so_that_others_accept_it(tmp_path: Path) -> None:
    made = signer(tmp_path).sign_vote(vote(), 99)
    assert made.timestamp_ns == 99
    assert verify_vote(made, CHAIN, Validator.of(KEY.public.raw, 1))


def test_the_same_place_and_block_give_the_stored_vote_even_after_a_restart(tmp_path: Path) -> None:
    one = signer(tmp_path)
    first = one.sign_vote(vote(), 99)
    assert one.sign_vote(vote(), 12_345) == first
    one.sync()
    assert signer(tmp_path).sign_vote(vote(), 12_345) == first


def test_nothing_reaches_the_disk_before_the_log_that_explains_it(tmp_path: Path) -> None:
    """A signature on disk whose reasons are lost can neither be repeated nor replaced: the validator is mute."""
    one = signer(tmp_path)
    one.sign_vote(vote(), 99)
    assert one.unsynced
    assert signer(tmp_path).last == (0, 0, 0)
    one.sync()
    assert signer(tmp_path).last == one.last == (5, 0, 2)


def test_what_only_the_log_knows_of_our_signatures_is_adopted(tmp_path: Path) -> None:
    other = tmp_path / "other"
    first = signer(other).sign_vote(vote(), 99)
    one = signer(tmp_path)
    one.adopt(first)
    one.adopt(first)
    assert one.sign_vote(vote(), 12_345) == first
    with pytest.raises(DoubleSignRefused):
        one.sign_vote(vote(block=OTHER), 100)
    one.sync()
    with pytest.raises(DoubleSignRefused):
        signer(tmp_path).sign_vote(vote(block=OTHER), 100)


@pytest.mark.parametrize(
    "regression",
    [
        vote(block=OTHER),
        vote(height=4, round_=9),
        vote(round_=0, type_=SignedType.PREVOTE, block=BlockId()),
    ],
)
def test_another_vote_for_the_place_or_an_earlier_one_is_refused(tmp_path: Path, regression: Vote) -> None:
    one = signer(tmp_path)
    one.sign_vote(vote(), 99)
    with pytest.raises(DoubleSignRefused):
        one.sign_vote(regression, 100)
    one.sync()
    with pytest.raises(DoubleSignRefused):
        signer(tmp_path).sign_vote(regression, 100)


def test_steps_and_rounds_and_heights_go_forward_only(tmp_path: Path) -> None:
    one = signer(tmp_path)
    one.sign_proposal(Proposal(5, 0, -1, BLOCK, 7))
    one.sign_vote(vote(), 1)
    one.sign_vote(vote(type_=SignedType.PRECOMMIT), 2)
    with pytest.raises(DoubleSignRefused):
        one.sign_vote(vote(block=OTHER), 3)
    with pytest.raises(DoubleSignRefused):
        one.sign_proposal(Proposal(5, 0, -1, OTHER, 7))
    one.sign_vote(vote(round_=1, block=OTHER), 4)
    one.sign_vote(vote(height=6), 5)


def test_the_same_proposal_again_is_the_stored_one_and_another_is_refused(tmp_path: Path) -> None:
    one = signer(tmp_path)
    first = one.sign_proposal(Proposal(5, 0, -1, BLOCK, 7))
    one.sync()
    assert signer(tmp_path).sign_proposal(Proposal(5, 0, -1, BLOCK, 7)) == first
    with pytest.raises(DoubleSignRefused):
        signer(tmp_path).sign_proposal(Proposal(5, 0, -1, OTHER, 7))


def test_a_damaged_sign_state_refuses_to_sign_at_all(tmp_path: Path) -> None:
    signer(tmp_path).sign_vote(vote(), 99)
    (tmp_path / "sign-state").write_bytes(b"\x00nonsense")
    with pytest.raises(Corrupt, match="could sign twice"):
        signer(tmp_path)
