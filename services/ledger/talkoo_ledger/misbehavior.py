"""What consensus proves against a validator, as ABCI reports it, and what the ledger does about it."""

from __future__ import annotations

from dataclasses import dataclass

from talkoo_consensus.types import Block


@dataclass(frozen=True, slots=True)
class Misbehavior:
    """One proven fault (ABCI's Misbehavior). `kind`: `duplicate_vote` or `light_client_attack`.

    `power` and `total_power` are those of `height`, at which the fault happened at `time_ns`.
    """

    kind: str
    validator_address: bytes
    power: int
    height: int
    time_ns: int
    total_power: int


def proven_by(block: Block) -> tuple[Misbehavior, ...]:
    """What a decided block proves, in its order."""
    return tuple(
        Misbehavior(
            "duplicate_vote",
            evidence.validator_address,
            evidence.validator_power,
            evidence.height,
            evidence.timestamp_ns,
            evidence.total_voting_power,
        )
        for evidence in block.evidence
    )
