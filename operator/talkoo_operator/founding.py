"""Several organizations begin a federation together: each publishes a card, and all make one genesis of them. Pure.

A card holds public things only: keys that sign are named by their public half.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from cryptography import x509

from talkoo.federation.beginning import account_entry, genesis_document, organization_entry
from talkoo_core.amounts import parse_tlk
from talkoo_core.errors import InvalidInput
from talkoo_core.signing import PrivateKey
from talkoo_operator.issued import organization_of
from talkoo_runtime.pki import Authority

CARD_FILE = "card.json"
GENESIS_FILE, TRUST_FILE = "genesis.json", "trust.pem"
"""Entries of the ConfigMap `<release>-federation`."""
MAX_CARD_CHARACTERS = 512 * 1024
BOND_NAMES = ("scheduler", "validator")
"""Services with an account of their own, for fees."""


class Founder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An organization that founds with us, and where its card lies."""

    organization: str
    namespace: str
    release: str


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one organization brings into a new federation."""

    organization: dict[str, Any]
    """Its entry in the genesis: name, public keys, stake."""
    accounts: list[dict[str, Any]]
    authority: str
    """Its authority's certificate (PEM)."""
    time_ns: int
    """When it was made."""


def make_card(
    authority: Authority,
    keys: Mapping[str, PrivateKey],
    accounts: Sequence[tuple[str, str, PrivateKey]],
    *,
    stake: str,
    balance: str,
    service_balance: str,
    time_ns: int,
) -> Card:
    """`keys` by `ORGANIZATION_KEYS`; `accounts` are (label, amount, key) beyond the organization's own."""
    name = authority.organization
    entries = [account_entry(keys["owner"], parse_tlk(balance), name)]
    entries += [account_entry(keys[role], parse_tlk(service_balance), f"{name}-{role}") for role in BOND_NAMES]
    entries += [account_entry(key, parse_tlk(amount), label) for label, amount, key in accounts]
    organization = organization_entry(name, keys, parse_tlk(stake))
    return Card(organization, entries, authority.certificate_pem.decode(), time_ns)


def card_text(card: Card) -> str:
    return json.dumps(msgspec.to_builtins(card), indent=2) + "\n"


def read_card(organization: str, text: str, where: str) -> Card:
    """Raises InvalidInput (code `bad_card`) for anything but a card of this organization."""
    try:
        if len(text) > MAX_CARD_CHARACTERS:
            raise ValueError(f"{len(text)} characters are no card")
        card = msgspec.json.decode(text, type=Card)
        authority = organization_of(x509.load_pem_x509_certificate(card.authority.encode()))
    except (ValueError, msgspec.MsgspecError) as error:
        raise InvalidInput(f"{where} is no card of an organization: {error}", code="bad_card") from None
    if card.organization.get("name") != organization or authority != organization:
        raise InvalidInput(
            f"{where} is the card of {card.organization.get('name')!r} with an authority of {authority!r}, not of "
            f"{organization}; correct federation.founders",
            code="bad_card",
        )
    return card


def genesis_of(federation: str, cards: Sequence[Card]) -> dict[str, object]:
    """The same for everybody who has the same cards, in whatever order."""
    ordered = _ordered(cards)
    accounts = [entry for card in ordered for entry in card.accounts]
    time_ns = max(card.time_ns for card in ordered)
    return genesis_document(f"{federation}-1", time_ns, [dict(card.organization) for card in ordered], accounts)


def trust_of(cards: Sequence[Card]) -> str:
    """The authorities of all founders."""
    return "".join(card.authority for card in _ordered(cards))


def _ordered(cards: Sequence[Card]) -> list[Card]:
    return sorted(cards, key=lambda card: str(card.organization["name"]))
