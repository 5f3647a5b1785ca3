"""Registration of nodes: who may compute for the federation, where and at which price."""

from __future__ import annotations

from msgspec.structs import replace

from talkoo_core.amounts import format_tlk
from talkoo_core.errors import Conflict, InsufficientFunds, NotFound, PermissionDenied
from talkoo_core.signing import PublicKey
from talkoo_ledger.context import Context
from talkoo_ledger.messages import RegisterNode
from talkoo_ledger.records import Node, Organization
from talkoo_ledger.stake import add_node_stake
from talkoo_ledger.transfers import account_of, debit

ENDORSEMENT_DOMAIN = b"talkoo/node/v1\n"


def register_node(context: Context, sender: str, message: RegisterNode) -> None:
    """First registration and every later change of the offer. The organization stays the one of the first time."""
    state = context.state
    organization = state.organizations.get(message.organization)
    if organization is None:
        raise NotFound(
            f"there is no organization {message.organization!r} in this federation", code="unknown_organization"
        )
    known = state.nodes.get(sender)
    if known is None:
        _check_endorsed(context, organization, sender, message.endorsement)
    elif known.organization != message.organization:
        raise Conflict(
            f"{known.name} belongs to {known.organization}; register with a new key to change that",
            code="organization_fixed",
        )
    _check_name_is_free(context, sender, message.name)
    node = _offer(known or Node(id=sender, organization=message.organization), message)
    if node.stake_utlk + message.stake_utlk < context.params.min_node_stake_utlk:
        raise InsufficientFunds(
            f"a node has a stake of at least {format_tlk(context.params.min_node_stake_utlk)}, this one would have "
            f"{format_tlk(node.stake_utlk + message.stake_utlk)}; stake more with the registration",
            code="stake_too_small",
        )
    debit(state, sender, message.stake_utlk, "the node's stake")
    add_node_stake(context, node, message.stake_utlk)
    account = account_of(state, sender)
    if not account.label:
        state.accounts.put(sender, replace(account, label=message.name))
    context.record_payment("bond", sender, f"stake:{sender}", message.stake_utlk, f"tx:{context.tx_hash.hex()}")
    context.emit("node_registered", sender, name=message.name, organization=message.organization)


def endorsement_bytes(chain_id: str, node_id: str) -> bytes:
    """What an organization's owner signs to let a node in."""
    return ENDORSEMENT_DOMAIN + chain_id.encode() + b"\n" + node_id.encode()


def _offer(node: Node, message: RegisterNode) -> Node:
    return replace(
        node,
        name=message.name,
        endpoint=message.endpoint,
        hardware_class=message.hardware_class,
        device=message.device,
        memory_bytes=message.memory_bytes,
        speed_flops=message.speed_flops,
        price_utlk_per_gflop=message.price_utlk_per_gflop,
        power_mw=message.power_mw,
        power_source=message.power_source,
        request_price_utlk=message.request_price_utlk,
        outbound_only=message.outbound_only,
    )


def _check_endorsed(context: Context, organization: Organization, sender: str, endorsement: bytes) -> None:
    if sender in organization.listed_nodes:
        return
    signed = endorsement_bytes(context.state.chain.chain_id, sender)
    if not endorsement or not PublicKey(organization.owner_key).verify(endorsement, signed):
        raise PermissionDenied(
            f"{organization.name} does not list this node's key and its owner did not endorse it; "
            "ask the organization for an endorsement",
            code="not_endorsed",
        )


def _check_name_is_free(context: Context, sender: str, name: str) -> None:
    if any(node.name == name and node.id != sender for node in context.state.nodes.all()):
        raise Conflict(f"another node is called {name!r}; choose another name", code="name_taken")
