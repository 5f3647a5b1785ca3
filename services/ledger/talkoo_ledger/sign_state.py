"""The last thing our validator signed, kept on disk before the signature leaves: never two for one place.

As CometBFT's private validator: a place is (height, round, step). The same place and the same content reuse the stored
signature (a vote that differs only in its time is the stored vote); other content, or a place before the stored one, is
refused.
"""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum
from pathlib import Path

import msgspec
from talkoo_consensus.encoding import (
    decode_proposal,
    decode_vote,
    encode_proposal,
    encode_vote,
    proposal_sign_bytes,
    vote_sign_bytes,
)
from talkoo_consensus.types import Proposal, SignedType, Vote

from talkoo_core.errors import Conflict, Corrupt
from talkoo_core.signing import PrivateKey
from talkoo_runtime.disk import write_atomic


class SignStep(IntEnum):
    PROPOSAL = 1
    PREVOTE = 2
    PRECOMMIT = 3


class _Last(msgspec.Struct, frozen=True):
    height: int = 0
    round: int = 0
    step: int = 0
    signed: bytes = b""

    @property
    def place(self) -> tuple[int, int, int]:
        return self.height, self.round, self.step


class DoubleSignRefused(Conflict):
    """Signing this would be, or could look like, signing two things for one place."""


class Signer:
    """Signs for one validator key. Opening it reads the last signature; raises Corrupt when that file is damaged."""

    def __init__(self, key: PrivateKey, chain_id: str, path: Path) -> None:
        self._key = key
        self._chain_id = chain_id
        self._path = path
        self._last = _read(path)

    def sign_vote(self, vote: Vote, now_ns: int) -> Vote:
        """The signed vote, on disk. Raises DoubleSignRefused, Exhausted (disk full)."""
        step = SignStep.PREVOTE if vote.type is SignedType.PREVOTE else SignStep.PRECOMMIT
        place = (vote.height, vote.round, int(step))
        if place == self._last.place:
            stored = decode_vote(self._last.signed)
            if stored.block_id == vote.block_id:
                return stored
        self._check(place)
        unsigned = replace(vote, timestamp_ns=now_ns)
        signed = replace(unsigned, signature=self._key.sign(vote_sign_bytes(self._chain_id, unsigned)))
        self._keep(place, encode_vote(signed))
        return signed

    def sign_proposal(self, proposal: Proposal) -> Proposal:
        """The signed proposal, on disk. Raises DoubleSignRefused, Exhausted (disk full)."""
        place = (proposal.height, proposal.round, int(SignStep.PROPOSAL))
        if place == self._last.place:
            stored = decode_proposal(self._last.signed)
            if replace(stored, signature=b"") == replace(proposal, signature=b""):
                return stored
        self._check(place)
        signed = replace(proposal, signature=self._key.sign(proposal_sign_bytes(self._chain_id, proposal)))
        self._keep(place, encode_proposal(signed))
        return signed

    def _check(self, place: tuple[int, int, int]) -> None:
        if place <= self._last.place:
            raise DoubleSignRefused(
                f"will not sign for height {place[0]}, round {place[1]}, step {place[2]}: already signed for "
                f"{self._last.height}, {self._last.round}, {self._last.step}",
                code="double_sign",
            )

    def _keep(self, place: tuple[int, int, int], signed: bytes) -> None:
        last = _Last(*place, signed)
        write_atomic(self._path, msgspec.msgpack.encode(last), mode=0o600)
        self._last = last


def _read(path: Path) -> _Last:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=_Last)
    except FileNotFoundError:
        return _Last()
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Corrupt(
            f"{path} is damaged ({error}); without it this validator could sign twice: restore it from a backup, or "
            "let the organization rotate its consensus key",
            code="sign_state_damaged",
        ) from None
