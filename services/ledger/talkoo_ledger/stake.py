"""Stake of nodes and organizations: bonding, unbonding, and what is taken from it when forging is proved."""

from __future__ import annotations

from msgspec.structs import replace

from talkoo_core.amounts import format_tlk, share_ppm
from talkoo_core.errors import Conflict, Exhausted, InsufficientFunds, NotFound, PermissionDenied
from talkoo_core.ids import is_address
from talkoo_ledger.context import Context
from talkoo_ledger.messages import Bond, Unbond
from talkoo_ledger.records import Node, Organization, Unbonding
from talkoo_ledger.state import State
from talkoo_ledger.transfers import credit, debit

UNBONDINGS_MAX = 8
"""Of one subject at a time, so that a slash never walks a long list."""


def bond(context: Context, sender: str, message: Bond) -> None:
    """Only the subject's own key (or, for a node, its organization's owner) adds stake: no one else moves its power."""
    state = context.state
    if is_address(message.subject):
        node = _node(state, message.subject)
        owner = state.organizations[node.organization].owner
        _check_owner(sender, (node.id, owner), message.subject)
        debit(state, sender, message.amount_utlk, "the bond")
        add_node_stake(context, node, message.amount_utlk)
    else:
        organization = _organization(state, message.subject)
        _check_owner(sender, (organization.owner,), message.subject)
        if organization.left_height:
            raise Conflict(f"{organization.name} has left; it is admitted again first", code="not_a_member")
        debit(state, sender, message.amount_utlk, "the bond")
        state.organizations.put(
            organization.name, replace(organization, stake_utlk=organization.stake_utlk + message.amount_utlk)
        )
    context.record_payment(
        "bond", sender, f"stake:{message.subject}", message.amount_utlk, f"tx:{context.tx_hash.hex()}"
    )


def add_node_stake(context: Context, node: Node, amount_utlk: int) -> Node:
    """Stake the tokens (already taken from someone) and let a jailed node out when its time is over."""
    stake = node.stake_utlk + amount_utlk
    served = context.height >= node.jailed_until_height and stake >= context.params.min_node_stake_utlk
    jailed = node.jailed and not (amount_utlk and served)
    node = replace(node, stake_utlk=stake, jailed=jailed, jailed_until_height=node.jailed_until_height if jailed else 0)
    context.state.nodes.put(node.id, node)
    return node


def unbond(context: Context, sender: str, message: Unbond) -> None:
    state, amount = context.state, message.amount_utlk
    if is_address(message.subject):
        node = _node(state, message.subject)
        _check_owner(sender, (node.id,), message.subject)
        left = _stake_left(node.stake_utlk, amount, node.name)
        minimum = context.params.min_node_stake_utlk
        if 0 < left < minimum:
            raise InsufficientFunds(
                f"{format_tlk(left)} of stake would be left, a node has at least {format_tlk(minimum)}; "
                f"unbond {format_tlk(node.stake_utlk)} to take out everything",
                code="stake_too_small",
            )
        state.nodes.put(node.id, replace(node, stake_utlk=left))
    else:
        organization = _organization(state, message.subject)
        _check_owner(sender, (organization.owner,), message.subject)
        left = _stake_left(organization.stake_utlk, amount, organization.name)
        others = any(
            o.stake_utlk and o.jailed_until_height <= context.height
            for o in state.organizations.all()
            if o.name != organization.name
        )
        if left == 0 and not others:
            raise Conflict("the last organization with stake keeps the chain going; it keeps some", code="last_stake")
        state.organizations.put(organization.name, replace(organization, stake_utlk=left))
    start_unbonding(context, sender, message.subject, amount)


def release_unbonded(context: Context) -> None:
    """Pay out the stake whose unbonding period is over."""
    for entry in context.state.unbonding.live():
        if entry.release_height > context.height:
            break  # keys begin with the release height
        context.state.unbonding.remove(entry.id)
        credit(context.state, entry.owner, entry.amount_utlk)
        context.record_payment(
            "unbond", f"unbonding:{entry.subject}", entry.owner, entry.amount_utlk, f"block:{context.height}"
        )


def take_slash(context: Context, node: Node, slash_ppm: int) -> tuple[Node, int]:
    """Take the slashed part of a node's stake and of what it is unbonding. Returns the node and the amount in utlk."""
    taken = share_ppm(node.stake_utlk, slash_ppm)
    node = replace(node, stake_utlk=node.stake_utlk - taken)
    return node, taken + slash_unbonding(context.state, node.id, slash_ppm)


def slash_unbonding(state: State, subject: str, slash_ppm: int) -> int:
    """Take a part of the stake that is on its way back; returns it in utlk."""
    taken = 0
    for entry in _unbondings(state, subject):
        part = share_ppm(entry.amount_utlk, slash_ppm)
        taken += part
        state.unbonding.put(entry.id, replace(entry, amount_utlk=entry.amount_utlk - part))
    return taken


def start_unbonding(context: Context, owner: str, subject: str, amount_utlk: int) -> None:
    if len(_unbondings(context.state, subject)) >= UNBONDINGS_MAX:
        raise Exhausted(
            f"{UNBONDINGS_MAX} parts of this stake are on their way back already; wait for one of them",
            code="too_many_unbondings",
        )
    release = context.height + context.params.unbonding_blocks
    context.record_payment(
        "unbonding", f"stake:{subject}", f"unbonding:{subject}", amount_utlk, f"tx:{context.tx_hash.hex()}"
    )
    key = f"{release:012d}/{context.state.chain.payments:012d}"
    context.state.unbonding.put(key, Unbonding(key, subject, owner, amount_utlk, release))


def _unbondings(state: State, subject: str) -> list[Unbonding]:
    return [entry for entry in state.unbonding.live() if entry.subject == subject]


def _stake_left(stake_utlk: int, amount_utlk: int, name: str) -> int:
    if amount_utlk > stake_utlk:
        raise InsufficientFunds(
            f"{name} has a stake of {format_tlk(stake_utlk)}, {format_tlk(amount_utlk)} cannot be taken out",
            code="stake_too_small",
        )
    return stake_utlk - amount_utlk


def _check_owner(sender: str, owners: tuple[str, ...], subject: str) -> None:
    if sender not in owners:
        raise PermissionDenied(
            f"the stake of {subject} is moved by its own key, not by {sender}", code="not_your_stake"
        )


def _node(state: State, node_id: str) -> Node:
    node = state.nodes.get(node_id)
    if node is None:
        raise NotFound(f"there is no node {node_id}; a node registers first", code="unknown_node")
    return node


def _organization(state: State, name: str) -> Organization:
    organization = state.organizations.get(name)
    if organization is None:
        raise NotFound(f"there is no organization {name!r} in this federation", code="unknown_organization")
    return organization
