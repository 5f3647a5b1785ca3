"""Who the other side of a mutual-TLS connection is, from its certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from talkoo_core.errors import PermissionDenied

ROLES = frozenset({"ledger", "scheduler", "validator", "gateway", "agent", "user", "supervisor", "etcd"})


@dataclass(frozen=True, slots=True)
class Identity:
    federation: str
    organization: str
    role: str
    name: str

    def __str__(self) -> str:
        return f"{self.role} {self.name} of {self.organization}"


def parse_identity(uri: str) -> Identity:
    """Read `spiffe://<federation>/<organization>/<role>/<name>`. Raises PermissionDenied (code `no_identity`)."""
    parts = uri.removeprefix("spiffe://").split("/")
    if not uri.startswith("spiffe://") or len(parts) != 4 or not all(parts) or parts[2] not in ROLES:
        raise PermissionDenied(
            f"the certificate names {uri!r}, not a member's service; use one issued by your organization",
            code="no_identity",
        )
    return Identity(*parts)


def identity_of(context: Any) -> Identity:
    """The caller of a gRPC call. Raises PermissionDenied when its certificate names nobody, or another's member."""
    return identity_of_certificate(certificate_of(context))


def certificate_of(context: Any) -> bytes:
    """The caller's own certificate as PEM, empty when it shows none."""
    pem: bytes = context.auth_context().get("x509_pem_cert", [b""])[0]
    return pem


def identity_of_certificate(pem: bytes) -> Identity:
    """From a leaf certificate. The organization in its name must be the one whose authority issued it."""
    cached = _known.get(pem)
    if cached is not None:
        return cached
    # Read here: it is a tenth of a second of a service's start, and most services are not called while they start.
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        raise PermissionDenied("the caller shows no certificate that names it", code="no_identity") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    identity = parse_identity(uris[0] if uris else "")
    issuers = certificate.issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if not issuers or issuers[0].value != identity.organization:
        raise PermissionDenied(
            f"the certificate of {identity} was not issued by {identity.organization}", code="wrong_issuer"
        )
    if len(_known) >= MAX_KNOWN:
        _known.clear()
    _known[pem] = identity
    return identity


MAX_KNOWN = 1024
_known: dict[bytes, Identity] = {}


def require(identity: Identity, *, roles: set[str], organization: str | None = None) -> None:
    """Allow these roles, of one organization when given. Raises PermissionDenied saying who asked and who may."""
    if identity.role not in roles or (organization is not None and identity.organization != organization):
        whose = f" of {organization}" if organization else ""
        raise PermissionDenied(f"{identity} may not call this; {' or '.join(sorted(roles))}{whose} may", code="role")
