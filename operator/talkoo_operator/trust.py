"""Whom this organization's services trust, as the ledger has the members now. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from talkoo_api.ledger.v1 import state_pb2
from talkoo_ledger.members import LEAVE_GRACE_BLOCKS

from talkoo_core.errors import InvalidInput
from talkoo_operator.issued import organization_of
from talkoo_runtime.pki import read_authority


@dataclass(frozen=True, slots=True)
class Trust:
    """A trust bundle, and how it differs from the one before."""

    bundle: bytes
    added: tuple[str, ...]
    """Organizations whose authority is new or another one."""
    removed: tuple[str, ...]
    refused: tuple[str, ...]
    """Sentences about authorities on the ledger that cannot be those of their organizations."""


def trust_now(bundle: bytes, organizations: Iterable[state_pb2.Organization], height: int, own: str) -> Trust:
    """Members that brought an authority in with their application are trusted, and those that left no more.

    What the ledger does not say stays: founders, whose authorities it does not have, until they leave; our own, which
    our parts need among themselves, whatever becomes of our membership.
    """
    named, gone, refused = {}, set(), []
    for each in organizations:
        if each.name == own:
            continue
        if each.left_height and height > each.left_height + LEAVE_GRACE_BLOCKS:
            gone.add(each.name)
        elif each.authority:
            try:
                named[each.name] = x509.load_pem_x509_certificate(read_authority(each.authority, each.name))
            except InvalidInput as error:
                refused.append(error.message)
    known = x509.load_pem_x509_certificates(bundle)
    removed = sorted({organization_of(each) for each in known} & gone)
    added = sorted(name for name, authority in named.items() if authority not in known)
    if not removed and not added:
        return Trust(bundle, (), (), tuple(refused))
    kept = [each for each in known if organization_of(each) not in {*removed, *added}]
    made = b"".join(each.public_bytes(Encoding.PEM) for each in (*kept, *(named[name] for name in added)))
    return Trust(made, tuple(added), tuple(removed), tuple(refused))
