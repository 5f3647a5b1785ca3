"""Membership: joining by the members' consent, leaving, and changing the key that votes at consensus.

A newcomer applies with its keys, members with voting power approve, and with more than two thirds of it the newcomer
is a member without stake; what it bonds becomes power at the end of the epoch. Every change of power or key takes
effect at consensus two heights later (`validator_updates`, then `talkoo_consensus.chain.advance`): the fixed delay that
lets each header name the validators of the next. Stake changes hands through unbonding alone: there is no redelegation,
so none can carry stake away from what it answers for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from talkoo_core.errors import Conflict, Exhausted, NotFound, PermissionDenied
from talkoo_core.ids import address_of_key
from talkoo_core.signing import PublicKey, address_of
from talkoo_ledger.context import Context
from talkoo_ledger.messages import ApplyMembership, ApproveMember, LeaveFederation, RotateKey
from talkoo_ledger.records import FormerKey, MembershipApplication, Organization
from talkoo_ledger.stake import start_unbonding
from talkoo_ledger.state import State

POSSESSION_DOMAIN: Final = b"talkoo/validator/v1\n"
APPLICATIONS_MAX: Final = 64
"""Open at one time; each is open for `unbonding_blocks`."""
FORMER_KEYS_MAX: Final = 8
"""Of one organization that evidence may still be about."""
LEAVE_GRACE_BLOCKS: Final = 16
"""For so long the nodes of the others still speak with one that has left: it votes for two more heights."""


@dataclass(frozen=True, slots=True)
class ValidatorUpdate:
    """A consensus key's new voting power; 0 removes it."""

    public_key: bytes
    power: int


def possession_bytes(chain_id: str, organization: str, owner: str) -> bytes:
    """What a consensus key signs, to show that whoever names it has it."""
    return POSSESSION_DOMAIN + "\n".join((chain_id, organization, owner)).encode()


def apply_membership(context: Context, sender: str, message: ApplyMembership) -> None:
    state = context.state
    if address_of_key(message.owner_key) != sender:
        raise PermissionDenied("an application is signed by the key it names as the owner's", code="not_your_key")
    _check_name(state, message.name, sender)
    _check_key_is_free(state, message.validator_key, except_application=message.name)
    _check_possession(context, message.validator_key, message.proof_of_possession, message.name, sender)
    for taken in (sender, message.scheduler, message.validator):
        if any(taken in (o.owner, o.scheduler, o.validator) for o in members_of(state, context.height)):
            raise Conflict(f"{taken} is a key of a member already; use another", code="key_taken")
    _forget_expired(context)
    if state.applications.get(message.name) is None and len(list(state.applications.keys())) >= APPLICATIONS_MAX:
        raise Exhausted(f"{APPLICATIONS_MAX} applications are open; wait for some to end", code="too_many_applications")
    application = MembershipApplication(
        name=message.name,
        owner=sender,
        owner_key=message.owner_key,
        validator_key=message.validator_key,
        scheduler=message.scheduler,
        validator=message.validator,
        height=context.height,
        authority=message.authority,
    )
    state.applications.put(message.name, application)
    context.emit("membership_applied", message.name, owner=sender, validator_key=message.validator_key.hex())


def approve_member(context: Context, sender: str, message: ApproveMember) -> None:
    """The approval names the key, so that nobody's approval can be used for another application of that name."""
    state = context.state
    member = owned_by(state, sender)
    if member is None or member.power == 0:
        raise PermissionDenied("only owners of members with voting power approve a newcomer", code="not_a_member")
    application = state.applications.get(message.name)
    if application is None or _is_expired(context, application) or application.validator_key != message.validator_key:
        raise NotFound(f"{message.name!r} has no open application with this key", code="unknown_application")
    if member.name in application.approvals:
        raise Conflict(f"{member.name} has approved {message.name} already", code="approved_already")
    application = replace(application, approvals=tuple(sorted((*application.approvals, member.name))))
    state.applications.put(message.name, application)
    context.emit("membership_approved", message.name, by=member.name)
    powers = {each.name: each.power for each in state.organizations.all()}
    if 3 * sum(powers[name] for name in application.approvals) > 2 * sum(powers.values()):
        _admit(context, application)


def rotate_key(context: Context, sender: str, message: RotateKey) -> None:
    """From now on another key votes. The old one still answers for what it signed, as long as stake can be taken."""
    state = context.state
    organization = _own(state, message.organization, sender)
    _check_key_is_free(state, message.validator_key)
    _check_possession(context, message.validator_key, message.proof_of_possession, organization.name, sender)
    until = context.height + context.params.unbonding_blocks
    former = tuple(key for key in organization.former_keys if key.until_height >= context.height)
    if len(former) >= FORMER_KEYS_MAX:
        raise Exhausted(
            f"{FORMER_KEYS_MAX} former keys of {organization.name} still answer for what they signed; wait until block "
            f"{former[0].until_height}",
            code="too_many_keys",
        )
    former = (*former, FormerKey(organization.validator_key, until))
    state.organizations.put(
        organization.name, replace(organization, validator_key=message.validator_key, former_keys=former)
    )
    context.emit("key_rotated", organization.name, validator_key=message.validator_key.hex())


def leave_federation(context: Context, sender: str, message: LeaveFederation) -> None:
    """Power is gone at once, the stake starts on its way back; its nodes and tasks end by their own rules."""
    state = context.state
    organization = _own(state, message.organization, sender)
    others = [each for each in state.organizations.all() if each.name != organization.name]
    if not any(each.power for each in others):
        raise Conflict("the last member with voting power keeps the chain going; it cannot leave", code="last_member")
    stake_utlk = organization.stake_utlk
    left = replace(organization, stake_utlk=0, power=0, scheduler="", left_height=context.height)
    state.organizations.put(organization.name, left)
    if stake_utlk:
        start_unbonding(context, sender, organization.name, stake_utlk)
    if organization.power:
        context.emit("power_changed", organization.name, power=0)
    context.emit("member_left", organization.name)


def validator_updates(state: State) -> list[ValidatorUpdate]:
    """What a block's layer changes for consensus: keys whose power is another than before, in order of keys.

    The difference of before and after, so that several changes within one block are one.
    """
    powers: dict[bytes, list[int]] = {}
    for _, before, after in state.organizations.changes():
        for place, organization in enumerate((before, after)):
            if organization is not None:
                powers.setdefault(organization.validator_key, [0, 0])[place] = organization.power
    return [ValidatorUpdate(key, new) for key, (old, new) in sorted(powers.items()) if old != new]


def members_of(state: State, height: int) -> list[Organization]:
    """Those that are members, or left so shortly ago that they still vote."""
    return [each for each in state.organizations.all() if is_member(each, height)]


def is_member(organization: Organization, height: int) -> bool:
    return organization.left_height == 0 or height <= organization.left_height + LEAVE_GRACE_BLOCKS


def owned_by(state: State, owner: str) -> Organization | None:
    """The member with this owner."""
    return next((each for each in state.organizations.all() if each.owner == owner and not each.left_height), None)


def names_by_address(organizations: Iterable[Organization]) -> dict[bytes, str]:
    """Whose consensus keys have these addresses, former keys included."""
    return {address_of(key): each.name for each in organizations for key in _keys_of(each)}


def _admit(context: Context, application: MembershipApplication) -> None:
    state, known = context.state, context.state.organizations.get(application.name)
    member = replace(
        known or Organization(name=application.name, owner=application.owner),
        owner_key=application.owner_key,
        validator_key=application.validator_key,
        scheduler=application.scheduler,
        validator=application.validator,
        left_height=0,
        authority=application.authority,
    )
    if known is not None and known.validator_key != application.validator_key:
        until = context.height + context.params.unbonding_blocks
        member = replace(member, former_keys=(*known.former_keys, FormerKey(known.validator_key, until)))
    state.organizations.put(application.name, member)
    state.applications.remove(application.name)
    context.emit("member_admitted", application.name, owner=application.owner)


def _check_name(state: State, name: str, owner: str) -> None:
    known = state.organizations.get(name)
    if known is not None and (not known.left_height or known.owner != owner):
        raise Conflict(f"there is an organization {name!r} already; choose another name", code="name_taken")
    open_one = state.applications.get(name)
    if open_one is not None and open_one.owner != owner:
        raise Conflict(f"somebody else has applied as {name!r}; choose another name", code="name_taken")
    if owned_by(state, owner) is not None:
        raise Conflict("this key owns a member already; one key owns one organization", code="key_taken")


def _check_key_is_free(state: State, key: bytes, except_application: str = "") -> None:
    used = {each for organization in state.organizations.all() for each in _keys_of(organization)}
    used |= {
        application.validator_key for application in state.applications.all() if application.name != except_application
    }
    if key in used:
        raise Conflict("this consensus key is or was in use; make a new one", code="key_taken")


def _check_possession(context: Context, key: bytes, proof: bytes, organization: str, owner: str) -> None:
    if not PublicKey(key).verify(proof, possession_bytes(context.state.chain.chain_id, organization, owner)):
        raise PermissionDenied(
            "the proof of possession was not made with this consensus key for this organization and chain",
            code="no_possession",
        )


def _own(state: State, name: str, sender: str) -> Organization:
    organization = state.organizations.get(name)
    if organization is None or organization.left_height:
        raise NotFound(f"there is no member {name!r}", code="unknown_organization")
    if organization.owner != sender:
        raise PermissionDenied(
            f"{name} is its owner's, not {sender}'s; sign with the owner's key", code="not_your_organization"
        )
    return organization


def _keys_of(organization: Organization) -> Iterator[bytes]:
    if organization.validator_key:
        yield organization.validator_key
    for former in organization.former_keys:
        yield former.validator_key


def _is_expired(context: Context, application: MembershipApplication) -> bool:
    return context.height > application.height + context.params.unbonding_blocks


def _forget_expired(context: Context) -> None:
    for application in context.state.applications.all():
        if _is_expired(context, application):
            context.state.applications.remove(application.name)
