"""An organization's authority that somebody else made, such as cert-manager, and the trust bundle with it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from talkoo_core.errors import InvalidInput, NotFound
from talkoo_runtime.pki import Authority

TLS_CERTIFICATE, TLS_KEY = "tls.crt", "tls.key"
"""The entries of a Secret of type kubernetes.io/tls."""


def issued_authority(organization: str, secret: Mapping[str, bytes], where: str) -> Authority:
    """From a Secret of type kubernetes.io/tls.

    Raises NotFound while it is empty, InvalidInput (code `bad_authority`) for a certificate that cannot be this
    organization's authority: services find out from its subject whose certificates they see.
    """
    if not secret.get(TLS_CERTIFICATE) or not secret.get(TLS_KEY):
        raise NotFound(f"{where} holds no {TLS_CERTIFICATE} and {TLS_KEY} yet")
    try:
        certificate = x509.load_pem_x509_certificates(secret[TLS_CERTIFICATE])[0]
    except ValueError as error:
        raise InvalidInput(f"{where}: {TLS_CERTIFICATE} is no certificate: {error}", code="bad_authority") from None
    if organization_of(certificate) != organization:
        raise InvalidInput(
            f"{where}: the certificate is of {organization_of(certificate)!r}; the authority of {organization} "
            f"must have the subject organization {organization!r}",
            code="bad_authority",
        )
    return Authority(organization, certificate.public_bytes(Encoding.PEM), secret[TLS_KEY])


def organization_of(certificate: x509.Certificate) -> str:
    """Empty where its subject names none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(names[0].value) if names else ""


def with_authority(bundle: bytes, authority: Authority) -> bytes:
    """The bundle with this authority in place of its organization's former one; unchanged where that is the same."""
    own = x509.load_pem_x509_certificate(authority.certificate_pem)
    known = x509.load_pem_x509_certificates(bundle)
    if own in known:
        return bundle
    others = [each for each in known if organization_of(each) != authority.organization]
    return b"".join(each.public_bytes(Encoding.PEM) for each in (*others, own))
