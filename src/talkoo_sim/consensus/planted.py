"""Mistakes to be planted in the production code, so that the simulator can be asked how soon it notices each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from talkoo_consensus import round as round_machine
from talkoo_consensus import votes
from talkoo_consensus.driver import Driver, ProposalReceived
from talkoo_consensus.round import FreshProposal, Input, Output, PolkaValue, ProposalWithPolka, RoundState
from talkoo_consensus.types import BlockId, SignedType
from talkoo_consensus.votes import VoteKeeper
from talkoo_ledger.node import Node
from talkoo_ledger.wal import Logged, WriteAheadLog

_see_polka = round_machine._see_polka


def _without_lock(state: RoundState, value: BlockId) -> tuple[RoundState, tuple[Output, ...]]:
    after, outputs = _see_polka(state, value)
    return replace(after, locked=None), outputs


def _without_valid(state: RoundState, value: BlockId) -> tuple[RoundState, tuple[Output, ...]]:
    after, outputs = _see_polka(state, value)
    return replace(after, valid=None), outputs


def _any_old_polka(_state: RoundState, _value: BlockId, _valid_round: int) -> bool:
    return True


def _any_polka(self: Driver, event: ProposalReceived) -> Iterator[Input]:
    """Prevotes of another round count as this one's. (Of later rounds alone nothing would follow: whoever hears so many
    of them is in that round already.)"""
    value, pol_round = event.proposal.block_id, event.proposal.pol_round
    valid = self._verdicts[value]
    if valid is None:
        return
    if pol_round == -1:
        yield FreshProposal(value, valid and event.timely)
    elif self._votes.has_quorum(pol_round, SignedType.PREVOTE, value):
        yield ProposalWithPolka(value, pol_round, valid)
    if valid and any(self._votes.has_quorum(round_, SignedType.PREVOTE, value) for round_ in self._votes.rounds()):
        yield PolkaValue(value)


def _send_first(self: Node) -> None:
    self._depart()
    if self._signer.unsynced:
        self._wal.sync()
        self._signer.sync()


def _two_thirds(power: int, total: int) -> bool:
    return 3 * power >= 2 * total


def _skip_for_anybody(self: VoteKeeper, current_round: int) -> int | None:
    return max((round_ for round_ in self.rounds() if round_ > current_round), default=None)


def _nothing_logged(_self: WriteAheadLog, _height: int) -> Iterator[Logged]:
    return iter(())


@dataclass(frozen=True, slots=True)
class Mistake:
    where: Any
    name: str
    wrong: Callable[..., object]


MISTAKES: dict[str, Mistake] = {
    "ignore-lock": Mistake(round_machine, "_see_polka", _without_lock),
    "old-polka": Mistake(round_machine, "_may_unlock", _any_old_polka),
    "other-polka": Mistake(Driver, "_proposal_inputs", _any_polka),
    "send-before-sync": Mistake(Node, "_flush", _send_first),
    "quorum-two-thirds": Mistake(votes, "is_quorum", _two_thirds),
    "quorum-one-third": Mistake(votes, "is_quorum", votes.is_one_honest),
    "forget-valid": Mistake(round_machine, "_see_polka", _without_valid),
    "skip-for-anybody": Mistake(VoteKeeper, "skip_round", _skip_for_anybody),
    "forget-log": Mistake(WriteAheadLog, "replay", _nothing_logged),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """`name`: of MISTAKES, "" for none."""
    if not name:
        yield
        return
    mistake = MISTAKES[name]
    right = getattr(mistake.where, mistake.name)
    setattr(mistake.where, mistake.name, mistake.wrong)
    try:
        yield
    finally:
        setattr(mistake.where, mistake.name, right)
