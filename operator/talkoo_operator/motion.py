"""What a Proposal's status says. Pure: the time is an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from talkoo_operator.status import MAX_MESSAGE, with_condition

Object = dict[str, Any]
ENDED = frozenset({"Carried", "Expired", "Refused"})


@dataclass(frozen=True, slots=True)
class Count:
    """An application and who has approved it."""

    name: str
    approvals: tuple[str, ...]
    power_for: int
    power_total: int
    open: bool
    member: bool

    @property
    def power_needed(self) -> int:
        """More than two thirds, as the ledger counts."""
        return 2 * self.power_total // 3 + 1


def counted(status: Mapping[str, Any], count: Count, generation: int, now: str) -> Object:
    """An approval of ours stands on the ledger; the others' decide."""
    if count.member:
        return decided(status, "Carried", "Admitted", f"{count.name} is a member", generation, now)
    if not count.open:
        words = f"the application of {count.name} is not open any more, and it is no member"
        return decided(status, "Expired", "ApplicationExpired", words, generation, now)
    words = (
        f"{', '.join(count.approvals)} with {count.power_for} of {count.power_total} voting power approve "
        f"{count.name}; {count.power_needed} are needed"
    )
    made: Object = {
        **_said(status, "Open", "Voting", words, None, generation, now),
        "votes": list(count.approvals),
        "powerFor": count.power_for,
        "powerNeeded": count.power_needed,
        "powerTotal": count.power_total,
    }
    return made


def decided(status: Mapping[str, Any], phase: str, reason: str, message: str, generation: int, now: str) -> Object:
    return _said(status, phase, reason, message, phase == "Carried", generation, now) | {"decidedAt": now}


def of_result(status: Mapping[str, Any], tx_hash: str, height: int, generation: int, now: str) -> Object:
    """Its transaction is final."""
    words = f"transaction {tx_hash} is final in block {height}"
    made = _said(status, "Open", "Submitted", words, None, generation, now)
    return made | {"transaction": tx_hash, "height": height, "submission": None}


def waiting_motion(status: Mapping[str, Any], message: str, generation: int, now: str) -> Object:
    return _said(status, "Pending", "LedgerUnavailable", message, None, generation, now)


def refused_motion(status: Mapping[str, Any], message: str, generation: int, now: str) -> Object:
    """The ledger, or what we know of it, says no; a Proposal is not tried twice."""
    return decided({**status, "submission": None}, "Refused", "Refused", message, generation, now)


def not_ours(namespace: str, generation: int, now: str) -> Object:
    words = f"only Proposals in the namespace {namespace} are signed with the organization's key"
    return decided({}, "Refused", "WrongNamespace", words, generation, now)


def _said(
    status: Mapping[str, Any], phase: str, reason: str, message: str, holds: bool | None, generation: int, now: str
) -> Object:
    made = with_condition(
        status, "Carried", holds=holds, reason=reason, message=message, generation=generation, now=now
    )
    return made | {
        "phase": phase,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "observedGeneration": generation,
    }
