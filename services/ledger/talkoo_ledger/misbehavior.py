"""What consensus proves against a validator, as ABCI reports it, and what the ledger does about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace
from talkoo_consensus.types import Block

from talkoo_core.amounts import share_ppm
from talkoo_ledger.context import Context
from talkoo_ledger.members import names_by_address
from talkoo_ledger.records import Organization
from talkoo_ledger.stake import slash_unbonding
from talkoo_ledger.transfers import TREASURY, credit

EFFECT_DELAY_BLOCKS: Final = 1
"""A validator without power still votes in the block after the one that took it, and not in later ones."""


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


def punish(context: Context, fault: Misbehavior) -> None:
    """Take `slash_ppm` of the organization's stake and of what it is unbonding, and its power until `jail_blocks` are
    over. Everything its key did before that took effect is one fault: it is punished once.

    Nothing happens to one who is no member any more, was punished for this already, or is the only
    validator with power: there is nobody who could go on without it.
    """
    state = context.state
    organization = _member(context, fault.validator_address)
    if organization is None or _is_covered(organization, fault.height):
        return
    taken = share_ppm(organization.stake_utlk, context.params.slash_ppm)
    from_unbonding = slash_unbonding(state, organization.name, context.params.slash_ppm)
    others = any(each.power for each in state.organizations.all() if each.name != organization.name)
    power = 0 if others else organization.power
    punished = replace(
        organization,
        stake_utlk=organization.stake_utlk - taken,
        slashed_utlk=organization.slashed_utlk + taken + from_unbonding,
        punished_height=context.height,
        jailed_until_height=context.height + context.params.jail_blocks,
        power=power,
    )
    state.organizations.put(organization.name, punished)
    credit(state, TREASURY, taken + from_unbonding)
    proof = f"block:{context.height}"
    context.record_payment("slash", f"stake:{organization.name}", TREASURY, taken, proof, note=fault.kind)
    context.record_payment("slash", f"unbonding:{organization.name}", TREASURY, from_unbonding, proof, note=fault.kind)
    context.emit(
        "validator_punished",
        organization.name,
        fault=fault.kind,
        height=fault.height,
        amount_utlk=taken + from_unbonding,
        jailed_until_height=punished.jailed_until_height,
    )
    if power != organization.power:
        context.emit("power_changed", organization.name, power=power)


def _member(context: Context, validator_address: bytes) -> Organization | None:
    """Whose key it is, or was when it signed."""
    name = names_by_address(context.state.organizations.all()).get(validator_address)
    return None if name is None else context.state.organizations[name]


def covered(context: Context, validator_address: bytes, height: int) -> bool:
    """Whether a fault of that height would not be punished any more: nobody's, or punished already."""
    organization = _member(context, validator_address)
    return organization is None or _is_covered(organization, height)


def _is_covered(organization: Organization, height: int) -> bool:
    punished = organization.punished_height
    return punished > 0 and height <= punished + EFFECT_DELAY_BLOCKS


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
