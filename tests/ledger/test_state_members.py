"""Joining, leaving and changing keys: the rules, and what consensus is told."""

from __future__ import annotations

from typing import Any

import pytest
from talkoo_api.ledger.v1 import tx_pb2
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_ledger.application import FinalizeRequest, FinalizeResponse
from talkoo_ledger.bounds import AUTHORITY_MAX_BYTES
from talkoo_ledger.members import (
    APPLICATIONS_MAX,
    FORMER_KEYS_MAX,
    LEAVE_GRACE_BLOCKS,
    ValidatorUpdate,
    is_member,
    possession_bytes,
)
from talkoo_ledger.misbehavior import Misbehavior

from talkoo_core.errors import Conflict, Exhausted, InvalidInput, NotFound, PermissionDenied, TalkooError
from talkoo_sim.ledger_chain import BLOCK_NS, CHAIN_ID, ORGANIZATIONS, LedgerChain, address, key_of, make_genesis

FIFTH = "fifth"
BOND_UTLK = 400_000_000


@pytest.fixture
def chain() -> LedgerChain:
    made = LedgerChain(make_genesis(epoch_blocks=10))
    made.send("alice", tx_pb2.Transfer(to=address(FIFTH), amount_utlk=500_000_000))
    return made


def possession(organization: str, owner: str, key: str) -> bytes:
    return key_of(key).sign(possession_bytes(CHAIN_ID, organization, address(owner)))


def application(name: str = FIFTH, owner: str = FIFTH, key: str = "fifth-consensus", **changes: Any) -> Any:
    values = {
        "name": name,
        "owner_key": key_of(owner).public.raw,
        "validator_key": key_of(key).public.raw,
        "proof_of_possession": possession(name, owner, key),
        "scheduler": address(f"{name}-scheduler"),
        "validator": address(f"{name}-validator"),
    }
    return tx_pb2.ApplyMembership(**(values | changes))


def approval(name: str = FIFTH, key: str = "fifth-consensus") -> Any:
    return tx_pb2.ApproveMember(name=name, validator_key=key_of(key).public.raw)


def rotation(organization: str, key: str, **changes: Any) -> Any:
    values = {
        "organization": organization,
        "validator_key": key_of(key).public.raw,
        "proof_of_possession": possession(organization, organization, key),
    }
    return tx_pb2.RotateKey(**(values | changes))


def admit(chain: LedgerChain) -> None:
    chain.send(FIFTH, application())
    for member in ("north", "east", "south"):
        chain.send(member, approval())


def refused(chain: LedgerChain, name: str, message: Any, kind: type[TalkooError]) -> str:
    with pytest.raises(kind) as caught:
        chain.send(name, message)
    return caught.value.code


def updates_of(response: FinalizeResponse) -> dict[bytes, int]:
    return {update.public_key: update.power for update in response.validator_updates}


def until_epoch(chain: LedgerChain) -> FinalizeResponse:
    while True:
        response = chain.block()
        if chain.height % 10 == 0:
            return response


def test_a_newcomer_is_admitted_by_more_than_two_thirds_and_votes_with_what_it_bonds(chain: LedgerChain) -> None:
    chain.send(FIFTH, application())
    chain.send("north", approval())
    chain.send("east", approval())
    assert chain.state.organizations.get(FIFTH) is None
    chain.send("south", approval())
    member = chain.state.organizations[FIFTH]
    assert (member.owner, member.power, member.stake_utlk) == (address(FIFTH), 0, 0)
    assert chain.state.applications.get(FIFTH) is None
    chain.send(FIFTH, tx_pb2.Bond(subject=FIFTH, amount_utlk=BOND_UTLK))
    updates = updates_of(until_epoch(chain))
    assert updates[key_of("fifth-consensus").public.raw] == BOND_UTLK == chain.state.organizations[FIFTH].power
    assert [e.type for e in chain.events() if e.subject == FIFTH and e.type.startswith("member")] == [
        "membership_applied",
        "membership_approved",
        "membership_approved",
        "membership_approved",
        "member_admitted",
    ]


def test_what_is_wrong_with_an_application_is_said(chain: LedgerChain) -> None:
    assert refused(chain, "alice", application(), PermissionDenied) == "not_your_key"
    assert refused(chain, FIFTH, application(name="north"), Conflict) == "name_taken"
    assert refused(chain, FIFTH, application(key="north-consensus"), Conflict) == "key_taken"
    assert refused(chain, FIFTH, application(scheduler=address("north-scheduler")), Conflict) == "key_taken"
    stolen = possession(FIFTH, FIFTH, "other-consensus")
    assert refused(chain, FIFTH, application(proof_of_possession=stolen), PermissionDenied) == "no_possession"
    elsewhere = possession("another", FIFTH, "fifth-consensus")
    assert refused(chain, FIFTH, application(proof_of_possession=elsewhere), PermissionDenied) == "no_possession"
    assert refused(chain, "north", application(owner="north", name="second"), Conflict) == "key_taken"
    chain.send(FIFTH, application())
    assert refused(chain, "bob", application(owner="bob", key="bobs-consensus"), Conflict) == "name_taken"
    assert refused(chain, "bob", application("bobs", "bob"), Conflict) == "key_taken"


def test_an_authority_stands_in_the_application_and_then_with_the_member(chain: LedgerChain) -> None:
    authority = b"x" * AUTHORITY_MAX_BYTES
    assert refused(chain, FIFTH, application(authority=authority + b"x"), InvalidInput) == "bad_field"
    chain.send(FIFTH, application(authority=authority))
    assert chain.state.applications[FIFTH].authority == authority
    chain.send(FIFTH, application(authority=b"another"))
    assert chain.state.applications[FIFTH].authority == b"another"
    for member in ("north", "east", "south"):
        chain.send(member, approval())
    assert chain.state.organizations[FIFTH].authority == b"another"
    assert chain.state.organizations["north"].authority == b""


def test_only_members_approve_once_and_only_the_key_they_mean(chain: LedgerChain) -> None:
    assert refused(chain, "north", approval(), NotFound) == "unknown_application"
    chain.send(FIFTH, application())
    assert refused(chain, "alice", approval(), PermissionDenied) == "not_a_member"
    assert refused(chain, "north", approval(key="another"), NotFound) == "unknown_application"
    chain.send("north", approval())
    assert refused(chain, "north", approval(), Conflict) == "approved_already"
    chain.send(FIFTH, application(key="newer"))  # whoever approved the other key has not approved this one
    assert chain.state.applications[FIFTH].approvals == ()


def test_applications_end_and_are_bounded(chain: LedgerChain) -> None:
    chain.send(FIFTH, application())
    chain.skip(chain.state.params.unbonding_blocks + 1)
    assert refused(chain, "north", approval(), NotFound) == "unknown_application"
    for number in range(APPLICATIONS_MAX):
        name = f"org-{number}"
        chain.send("alice", tx_pb2.Transfer(to=address(name), amount_utlk=2_000))
        chain.send(name, application(name, name, f"{name}-consensus"))
    assert len(list(chain.state.applications.keys())) == APPLICATIONS_MAX  # the one that ended made room
    assert refused(chain, FIFTH, application(), Exhausted) == "too_many_applications"


def test_a_rotated_key_votes_and_the_old_one_still_answers(chain: LedgerChain) -> None:
    old, new = key_of("north-consensus"), key_of("north-second")
    power = chain.state.organizations["north"].power
    response = chain.block(chain.signed("north", rotation("north", "north-second")))
    assert updates_of(response) == {old.public.raw: 0, new.public.raw: power}
    assert chain.application.organization_of(old.public.address) == "north"
    assert chain.application.organization_of(new.public.address) == "north"
    assert refused(chain, "north", rotation("north", "north-consensus"), Conflict) == "key_taken"
    assert refused(chain, "east", rotation("east", "north-consensus"), Conflict) == "key_taken"
    fault = Misbehavior(
        "duplicate_vote", old.public.address, power, chain.height - 1, chain.height * BLOCK_NS, 4 * power
    )
    height = chain.height + 1
    request = FinalizeRequest(height, bytes(32), height * BLOCK_NS, new.public.address, (), (fault,))
    punished = chain.application.finalize_block(request)
    chain.application.commit()
    assert updates_of(punished) == {new.public.raw: 0}
    assert chain.state.organizations["north"].slashed_utlk > 0


def test_keys_are_rotated_by_their_owner_with_proof_and_not_for_ever(chain: LedgerChain) -> None:
    assert refused(chain, "alice", rotation("north", "x"), PermissionDenied) == "not_your_organization"
    assert refused(chain, "north", rotation("nobody", "x"), NotFound) == "unknown_organization"
    wrong = rotation("north", "x", proof_of_possession=possession("east", "north", "x"))
    assert refused(chain, "north", wrong, PermissionDenied) == "no_possession"
    for number in range(FORMER_KEYS_MAX):
        chain.send("north", rotation("north", f"north-{number}"))
    assert refused(chain, "north", rotation("north", "one-more"), Exhausted) == "too_many_keys"
    chain.skip(chain.state.params.unbonding_blocks + 1)
    chain.send("north", rotation("north", "one-more"))
    assert len(chain.state.organizations["north"].former_keys) == 1


def test_several_changes_in_one_block_are_one_for_consensus(chain: LedgerChain) -> None:
    first, last = key_of("north-first"), key_of("north-last")
    power = chain.state.organizations["north"].power
    response = chain.block(
        chain.signed("north", rotation("north", "north-first")),
        chain.signed("north", rotation("north", "north-last"), ahead=1),
        chain.signed("east", tx_pb2.LeaveFederation(organization="east")),
    )
    assert all(result.code == 0 for result in response.tx_results)
    assert updates_of(response) == {
        key_of("north-consensus").public.raw: 0,
        last.public.raw: power,
        key_of("east-consensus").public.raw: 0,
    }
    assert first.public.raw not in updates_of(response)


def test_who_leaves_loses_power_at_once_and_has_its_stake_later(chain: LedgerChain) -> None:
    before, stake = chain.balance("north"), chain.state.organizations["north"].stake_utlk
    assert refused(chain, "alice", tx_pb2.LeaveFederation(organization="north"), PermissionDenied)
    response = chain.block(chain.signed("north", tx_pb2.LeaveFederation(organization="north")))
    assert updates_of(response) == {key_of("north-consensus").public.raw: 0}
    left = chain.state.organizations["north"]
    assert (left.power, left.stake_utlk, left.left_height) == (0, 0, chain.height)
    assert is_member(left, chain.height + LEAVE_GRACE_BLOCKS)
    assert not is_member(left, chain.height + LEAVE_GRACE_BLOCKS + 1)
    assert refused(chain, "north", tx_pb2.Bond(subject="north", amount_utlk=1), Conflict) == "not_a_member"
    assert refused(chain, "north", approval(), PermissionDenied) == "not_a_member"
    chain.skip(chain.state.params.unbonding_blocks + 1)
    assert chain.balance("north") > before + stake - 10_000
    # It may come back under its name.
    again = application("north", "north", "north-again")
    chain.send("north", again)
    for member in ("east", "south", "west"):
        chain.send(member, approval("north", "north-again"))
    assert chain.state.organizations["north"].left_height == 0


def test_the_last_member_with_power_cannot_leave(chain: LedgerChain) -> None:
    for name in ORGANIZATIONS[:-1]:
        chain.send(name, tx_pb2.LeaveFederation(organization=name))
    last = ORGANIZATIONS[-1]
    assert refused(chain, last, tx_pb2.LeaveFederation(organization=last), Conflict) == "last_member"


def test_consensus_accepts_every_update(chain: LedgerChain) -> None:
    """The validator set of consensus follows, the removal of its proposer included."""
    members = chain.state.organizations.all()
    validators = ValidatorSet.create(Validator.of(o.validator_key, o.power) for o in members)

    def decide(*txs: bytes) -> None:
        nonlocal validators
        changes = chain.block(*txs).validator_updates
        assert all(isinstance(change, ValidatorUpdate) for change in changes)
        validators = validators.next_height([Validator.of(each.public_key, each.power) for each in changes])
        powers = {o.validator_key: o.power for o in chain.state.organizations.all() if o.power}
        assert {v.public_key: v.power for v in validators.validators} == powers

    decide(chain.signed(FIFTH, application()))
    decide(*(chain.signed(name, approval()) for name in ORGANIZATIONS))
    decide(chain.signed(FIFTH, tx_pb2.Bond(subject=FIFTH, amount_utlk=BOND_UTLK)))
    while chain.height % 10:
        decide()
    decide()
    for name in ("north", "east"):
        decide(chain.signed(name, rotation(name, f"{name}-second")))
    proposer = validators.proposer.address
    name = chain.application.organization_of(proposer)
    decide(chain.signed(name, tx_pb2.LeaveFederation(organization=name)))
    assert validators.find(proposer) is None
    for _ in range(25):
        decide()
    assert len(validators) == 4
