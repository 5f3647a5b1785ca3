"""The trust bundle follows the ledger: who was admitted is trusted, who left no more, and nobody by another's name."""

from __future__ import annotations

import datetime

import pytest
from talkoo_api.ledger.v1 import state_pb2
from talkoo_ledger.members import LEAVE_GRACE_BLOCKS
from talkoo_operator.trust import Trust, trust_now

from talkoo_runtime.pki import Authority, create_authority, der_of, trust_bundle

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
NORTH, EAST, SOUTH = (create_authority(name, NOW) for name in ("north", "east", "south"))
FOUNDED = trust_bundle([EAST, NORTH])


def organization(name: str, authority: Authority | None = None, left_height: int = 0) -> state_pb2.Organization:
    der = der_of(authority.certificate_pem) if authority is not None else b""
    return state_pb2.Organization(name=name, authority=der, left_height=left_height)


FOUNDERS = [organization("north"), organization("east")]


def seen(*more: state_pb2.Organization, bundle: bytes = FOUNDED, height: int = 100) -> Trust:
    return trust_now(bundle, [*FOUNDERS, *more], height, "north")


def test_founders_are_trusted_though_the_ledger_has_no_authority_of_theirs() -> None:
    assert seen() == Trust(FOUNDED, (), (), ())


def test_a_newcomer_is_trusted_once_it_is_a_member_and_its_new_authority_in_place_of_the_old() -> None:
    made = seen(organization("south", SOUTH))
    assert (made.bundle, made.added) == (FOUNDED + SOUTH.certificate_pem, ("south",))
    assert seen(organization("south", SOUTH), bundle=made.bundle) == Trust(made.bundle, (), (), ())
    newer = create_authority("south", NOW)
    again = seen(organization("south", newer), bundle=made.bundle)
    assert (again.bundle, again.added) == (FOUNDED + newer.certificate_pem, ("south",))


@pytest.mark.parametrize("authority", [SOUTH, None], ids=["from the ledger", "a founder's"])
def test_who_left_is_trusted_until_its_last_votes_are_in(authority: Authority | None) -> None:
    both = FOUNDED + SOUTH.certificate_pem
    left = organization("south", authority, left_height=100)
    assert seen(left, bundle=both, height=100 + LEAVE_GRACE_BLOCKS).bundle == both
    gone = seen(left, bundle=both, height=101 + LEAVE_GRACE_BLOCKS)
    assert (gone.bundle, gone.removed) == (FOUNDED, ("south",))


def test_our_own_authority_is_ours_alone() -> None:
    organizations = [organization("north", SOUTH, left_height=1), organization("east")]
    assert trust_now(FOUNDED, organizations, 1000, "north") == Trust(FOUNDED, (), (), ())


@pytest.mark.parametrize("authority", [EAST, NORTH], ids=["of another member", "our own"])
def test_nobody_is_trusted_by_anothers_name(authority: Authority) -> None:
    made = seen(organization("south", authority))
    assert (made.bundle, made.added) == (FOUNDED, ())
    (words,) = made.refused
    assert "that of south must have the subject organization 'south'" in words


def test_what_is_no_certificate_harms_nobody_else() -> None:
    broken = state_pb2.Organization(name="west", authority=b"\x30\x82")
    made = seen(broken, organization("south", SOUTH))
    assert made.added == ("south",)
    assert "the authority of west is no self-signed certificate" in made.refused[0]
