"""How an organization with a cluster of its own joins: a member's invitation goes out, an application comes back. Pure.

An invitation holds nothing secret: what every member knows, and where this one can be reached. An application is a
`Proposal` that a member's administrator applies: in it lies what the newcomer's owner has signed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography import x509
from google.protobuf.message import DecodeError
from talkoo_api.ledger.v1 import tx_pb2

from talkoo.membership import application_of
from talkoo_core.errors import InvalidInput
from talkoo_core.ids import address_of_key
from talkoo_core.signing import PUBLIC_KEY_BYTES, PrivateKey, PublicKey
from talkoo_operator.api import GROUP, VERSION
from talkoo_operator.issued import organization_of
from talkoo_runtime.keys import address_of
from talkoo_runtime.pki import Authority, der_of, read_authority
from talkoo_runtime.transactions import SIGN_DOMAIN, sign_transaction

INVITATION_FILE, APPLICATION_FILE = "invitation.json", "application.yaml"
MAX_INVITATION_CHARACTERS = 1 << 20
INVITED_TO = ("ledger", "scheduler", "gateway")
"""Services of a member that a newcomer calls."""
_ENDPOINT = re.compile(r"[A-Za-z0-9.\-]{1,249}:\d{1,5}|\[[0-9a-fA-F:]{2,45}\]:\d{1,5}")


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a newcomer needs to begin. The chart reads it, too."""

    federation: str
    organization: str
    """Who invites."""
    ledger: str
    scheduler: str
    gateway: str
    """host:port at which its services are reached from outside of its cluster."""
    genesis: str
    """The genesis file, byte for byte."""
    trust: str
    """The members' authorities (PEM)."""
    agent_port: int = 0
    """Of its agents on their nodes' own addresses; 0: they are not reached from outside."""


def invitation_text(invitation: Invitation) -> str:
    return json.dumps(msgspec.to_builtins(invitation), indent=2) + "\n"


def read_invitation(text: str, where: str) -> Invitation:
    """Raises InvalidInput (code `bad_invitation`)."""
    try:
        if len(text) > MAX_INVITATION_CHARACTERS:
            raise ValueError(f"{len(text)} characters are no invitation")
        invitation = msgspec.json.decode(text, type=Invitation)
        _chain(invitation.genesis)
        trusted = {organization_of(each) for each in x509.load_pem_x509_certificates(invitation.trust.encode())}
    except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise InvalidInput(
            f"{where} is no invitation: {error!r}; take it anew from the ConfigMap `<release>-invitation` of a member",
            code="bad_invitation",
        ) from None
    wrong = [service for service in INVITED_TO if not _ENDPOINT.fullmatch(getattr(invitation, service))]
    if wrong or invitation.organization not in trusted:
        words = f"{wrong[0]} is no host:port" if wrong else f"no authority of {invitation.organization} is in its trust"
        raise InvalidInput(f"{where}: {words}; let {invitation.organization} invite anew", code="bad_invitation")
    return invitation


def signed_application(
    invitation: Invitation, authority: Authority, keys: Mapping[str, PrivateKey], nonce: int
) -> bytes:
    """The owner's transaction; made without a connection, as nobody trusts the newcomer yet.

    `keys` by `ORGANIZATION_KEYS`. `nonce` is 0 for an owner that has never sent anything.
    """
    chain_id, fee_utlk = _chain(invitation.genesis)
    message = application_of(
        chain_id,
        authority.organization,
        keys["owner"].public,
        keys["consensus"],
        address_of(keys["scheduler"]),
        address_of(keys["validator"]),
        der_of(authority.certificate_pem),
    )
    return sign_transaction(keys["owner"], chain_id, nonce, fee_utlk, message)


def application_manifest(authority: Authority, owner: str, signed: bytes, grant: str) -> str:
    """The Proposal that admits; `grant` is what the newcomer asks for."""
    name = authority.organization
    fingerprint = hashlib.sha256(der_of(authority.certificate_pem)).hexdigest()
    return f"""\
# {name} asks to become a member. Whoever admits it makes sure, by other means than this file, that
# its authority's certificate has the SHA-256 {fingerprint},
# and applies it in the namespace of its own release.
apiVersion: {GROUP}/{VERSION}
kind: Proposal
metadata:
  name: admit-{name}
spec:
  action: AdmitMember
  organization: {name}
  # From your organization's owner to {owner}:
  # for its fee, its stake and its nodes' stakes. Change it, or leave it out where it has tokens.
  grant: {grant}
  application: {base64.b64encode(signed).decode()}
"""


@dataclass(frozen=True, slots=True)
class Application:
    """What a newcomer's owner has signed."""

    signed: bytes
    owner: str
    """Address."""
    chain_id: str
    nonce: int


def read_application(encoded: str, organization: str) -> Application:
    """Out of a Proposal. Raises InvalidInput (codes `bad_application`, `bad_authority`) for anything but the signed
    application of this organization with an authority of its own."""
    try:
        signed = base64.b64decode(encoded, validate=True)
        transaction = tx_pb2.SignedTx.FromString(signed)
        body = tx_pb2.TxBody.FromString(transaction.body)
    except (ValueError, DecodeError) as error:
        raise _no_application(organization, str(error)) from None
    message = body.apply_membership
    if not body.HasField("apply_membership") or message.name != organization:
        raise _no_application(organization, f"it is of {message.name!r}")
    if message.owner_key != transaction.public_key or len(transaction.public_key) != PUBLIC_KEY_BYTES:
        raise _no_application(organization, "another key than the owner's has signed it")
    if not PublicKey(transaction.public_key).verify(transaction.signature, SIGN_DOMAIN + transaction.body):
        raise _no_application(organization, "its signature is wrong")
    if not message.authority:
        raise _no_application(organization, "it names no authority")
    read_authority(message.authority, organization)
    return Application(signed, address_of_key(transaction.public_key), body.chain_id, int(body.nonce))


def _no_application(organization: str, reason: str) -> InvalidInput:
    return InvalidInput(
        f"spec.application is no application of {organization}: {reason}; take it anew from the ConfigMap "
        "`<release>-application` of its cluster",
        code="bad_application",
    )


def _chain(genesis: str) -> tuple[str, int]:
    """Its name, and what a transaction costs there."""
    document: Any = json.loads(genesis)
    return str(document["chain_id"]), int(document["params"]["min_fee_utlk"])
