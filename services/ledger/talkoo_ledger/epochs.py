"""The end of an epoch: new tokens for verified work, credit that decays, and voting power that follows."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from talkoo_core.amounts import share_ppm, split_by_weight
from talkoo_ledger import economy
from talkoo_ledger.context import Context
from talkoo_ledger.transfers import TREASURY, credit


def end_epoch(context: Context) -> None:
    """Emission, then credit, then power. Only here does power change, so a set of validators lasts an epoch."""
    state = context.state
    number = state.chain.epoch + 1
    state.chains.put("chain", replace(state.chain, epoch=number))
    emitted = _emit_tokens(context, number)
    _renew_power(context)
    _forget_epoch(context)
    context.emit("epoch", str(number), emitted_utlk=emitted)


def _emit_tokens(context: Context, number: int) -> int:
    """Issue the epoch's tokens. A part that nobody earned goes to the treasury: the schedule is fixed."""
    params, state = context.params, context.state
    total = economy.emission_of_epoch(number, params.emission_per_epoch_utlk, params.emission_halving_epochs)
    if total == 0:
        return 0
    state.supplies.put("supply", replace(state.supply, emitted_utlk=state.supply.emitted_utlk + total))
    nodes, organizations = state.nodes.all(), state.organizations.all()
    compute = [(node.id, node.epoch_mflop) for node in nodes]
    validation = [(each.validator, each.epoch_verdicts) for each in organizations]
    consensus = [(each.owner, each.power) for each in organizations]
    left = total
    left -= _share_out(context, share_ppm(total, params.emission_compute_ppm), compute, "verified compute")
    left -= _share_out(context, share_ppm(total, params.emission_validation_ppm), validation, "validation")
    left -= _share_out(context, share_ppm(total, params.emission_consensus_ppm), consensus, "consensus")
    _share_out(context, left, [(TREASURY, 1)], "treasury")
    return total


def _share_out(context: Context, amount_utlk: int, weights: Sequence[tuple[str, int]], note: str) -> int:
    parts = split_by_weight(amount_utlk, [weight for _, weight in weights])
    for (address, _), part in zip(weights, parts, strict=True):
        credit(context.state, address, part)
        context.record_payment("emission", "emission", address, part, f"block:{context.height}", note=note)
    return sum(parts)


def _renew_power(context: Context) -> None:
    params, state = context.params, context.state
    work: dict[str, int] = {}
    for node in state.nodes.all():
        work[node.organization] = work.get(node.organization, 0) + node.epoch_mflop
    for organization in state.organizations.all():
        gained, rest = divmod(organization.credit_rest_mflop + work.get(organization.name, 0), economy.MFLOP_PER_GFLOP)
        credit_gflop = economy.decayed(organization.credit_gflop, params.credit_decay_ppm) + gained
        power = economy.voting_power(organization.stake_utlk, credit_gflop, params.credit_half_gflop)
        if context.height < organization.jailed_until_height:
            power = min(power, organization.power)
        if power != organization.power:
            context.emit("power_changed", organization.name, power=power)
        state.organizations.put(
            organization.name,
            replace(organization, credit_gflop=credit_gflop, credit_rest_mflop=rest, power=power),
        )


def _forget_epoch(context: Context) -> None:
    state = context.state
    for node in state.nodes.all():
        if node.epoch_mflop:
            state.nodes.put(node.id, replace(node, epoch_mflop=0))
    for organization in state.organizations.all():
        if organization.epoch_verdicts:
            state.organizations.put(organization.name, replace(organization, epoch_verdicts=0))
