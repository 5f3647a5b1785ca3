"""Validator sets and the weighted round robin that picks proposers, as CometBFT's `types/validator_set.go`.

Each rotation adds every validator's power to its priority; the highest proposes and pays the total power back. So a
validator proposes in proportion to its power. Priorities stay centred on zero within a window of twice the total
power, and whoever joins starts at -1.125 of it, so that leaving and joining again gains nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from talkoo_core.errors import InvalidInput
from talkoo_core.signing import ADDRESS_BYTES, address_of

MAX_TOTAL_POWER: Final = (2**63 - 1) // 8
PRIORITY_WINDOW_FACTOR: Final = 2
MAX_VALIDATORS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Validator:
    address: bytes
    public_key: bytes
    power: int
    proposer_priority: int = 0

    @classmethod
    def of(cls, public_key: bytes, power: int) -> Validator:
        """From a raw Ed25519 key; power 0 in a change removes the validator."""
        return cls(address_of(public_key), public_key, power)


def _refuse(message: str) -> InvalidInput:
    return InvalidInput(message, code="bad_validator_change")


def _divide_toward_zero(value: int, by: int) -> int:
    return value // by if value >= 0 else -(-value // by)


@dataclass(frozen=True, slots=True)
class ValidatorSet:
    """Sorted by power, highest first, then by address. `proposer_address` is whom the last rotation picked."""

    validators: tuple[Validator, ...]
    proposer_address: bytes = b""

    @classmethod
    def create(cls, validators: Iterable[Validator]) -> ValidatorSet:
        """The first set of a chain, rotated once. Raises InvalidInput (`bad_validator_change`)."""
        return cls(()).update(validators, allow_removals=False).rotate()

    @property
    def total_power(self) -> int:
        return sum(v.power for v in self.validators)

    @property
    def proposer(self) -> Validator:
        found = self.find(self.proposer_address)
        return found[1] if found is not None else min(self.validators, key=_proposes_first)

    def __len__(self) -> int:
        return len(self.validators)

    def find(self, address: bytes) -> tuple[int, Validator] | None:
        """Index and validator of an address, or None."""
        for index, validator in enumerate(self.validators):
            if validator.address == address:
                return index, validator
        return None

    def at(self, index: int) -> Validator | None:
        return self.validators[index] if 0 <= index < len(self.validators) else None

    def proposer_of_round(self, round_: int) -> Validator:
        """Who proposes in a round of the height that this set, as rotated for round 0, belongs to."""
        return self.proposer if round_ == 0 else self.rotate(round_).proposer

    def rotate(self, times: int = 1) -> ValidatorSet:
        """CometBFT's IncrementProposerPriority."""
        assert self.validators
        assert times > 0
        total = self.total_power
        members = _centred(_rescaled(list(self.validators), PRIORITY_WINDOW_FACTOR * total))
        chosen = 0
        for _ in range(times):
            members = [replace(v, proposer_priority=v.proposer_priority + v.power) for v in members]
            chosen = min(range(len(members)), key=lambda index: _proposes_first(members[index]))
            winner = members[chosen]
            members[chosen] = replace(winner, proposer_priority=winner.proposer_priority - total)
        return ValidatorSet(tuple(members), members[chosen].address)

    def update(self, changes: Iterable[Validator], *, allow_removals: bool = True) -> ValidatorSet:
        """Apply joins, new powers and removals (power 0). Raises InvalidInput (`bad_validator_change`).

        The proposer stays named until the next `rotate`, which the rule of heights always does (`next_height`).
        """
        ordered = sorted(changes, key=lambda v: v.address)
        if not ordered:
            return self
        _check_changes(ordered, allow_removals)
        present = {v.address: v for v in self.validators}
        updates = [v for v in ordered if v.power > 0]
        removed = {v.address for v in ordered if v.power == 0}
        for address in sorted(removed):
            if address not in present:
                raise _refuse(f"validator {address.hex()} cannot be removed: it is not in the set")
        after_updates = self.total_power + sum(
            v.power - (present[v.address].power if v.address in present else 0) for v in updates
        )
        if after_updates - sum(present[address].power for address in removed) > MAX_TOTAL_POWER:
            raise _refuse(f"the total voting power would exceed {MAX_TOTAL_POWER}; lower the powers")
        joining_priority = -(after_updates + (after_updates >> 3))
        for change in updates:
            old = present.get(change.address)
            present[change.address] = replace(
                change, proposer_priority=joining_priority if old is None else old.proposer_priority
            )
        members = [v for address, v in sorted(present.items()) if address not in removed]
        if not members:
            raise _refuse("the change would leave no validator; keep at least one")
        if len(members) > MAX_VALIDATORS:
            raise _refuse(f"a set holds at most {MAX_VALIDATORS} validators")
        members = _centred(_rescaled(members, PRIORITY_WINDOW_FACTOR * sum(v.power for v in members)))
        members.sort(key=lambda v: (-v.power, v.address))
        return ValidatorSet(tuple(members), self.proposer_address)

    def next_height(self, changes: Iterable[Validator] = ()) -> ValidatorSet:
        """The set that follows this one: changes first, then one rotation (CometBFT's updateState)."""
        return self.update(changes).rotate()


def _proposes_first(validator: Validator) -> tuple[int, bytes]:
    return -validator.proposer_priority, validator.address


def _check_changes(ordered: list[Validator], allow_removals: bool) -> None:
    previous = b""
    for change in ordered:
        name = change.address.hex()
        if len(change.address) != ADDRESS_BYTES or change.address != address_of(change.public_key):
            raise _refuse(f"validator {name} is not the address of its public key")
        if change.address == previous:
            raise _refuse(f"validator {name} appears twice in one change; give its final power once")
        if not 0 <= change.power <= MAX_TOTAL_POWER:
            raise _refuse(f"validator {name} has power {change.power}; it must be 0 to {MAX_TOTAL_POWER}")
        if change.power == 0 and not allow_removals:
            raise _refuse(f"validator {name} has power 0 in a first set; leave it out")
        previous = change.address


def _rescaled(members: list[Validator], window: int) -> list[Validator]:
    """Shrink the spread of priorities into the window by an integer division, rounded toward zero as Go's."""
    priorities = [v.proposer_priority for v in members]
    spread = max(priorities) - min(priorities)
    if window <= 0 or spread <= window:
        return members
    ratio = (spread + window - 1) // window
    return [replace(v, proposer_priority=_divide_toward_zero(v.proposer_priority, ratio)) for v in members]


def _centred(members: list[Validator]) -> list[Validator]:
    average = sum(v.proposer_priority for v in members) // len(members)
    return [replace(v, proposer_priority=v.proposer_priority - average) for v in members]
