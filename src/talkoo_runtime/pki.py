"""Certificates: one authority per organization, one certificate per service, named by a SPIFFE-like URI.

The federation trusts the list of its members' authorities; nobody can issue a certificate for another organization
that its services would take: a server takes only one that the named organization's authority issued (`admission`).
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from talkoo_core.errors import InvalidInput
from talkoo_runtime.disk import write_atomic

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 90
RENEW_BELOW = 1 / 3
"""Of a certificate's life: with less left it is issued anew."""
CLOCK_SKEW = datetime.timedelta(minutes=5)
SECRET_MODE = 0o600
CERTIFICATE_FILE = "certificate.pem"
KEY_FILE = "private-key.pem"


@dataclass(frozen=True, slots=True)
class Authority:
    """An organization's certificate authority."""

    organization: str
    certificate_pem: bytes
    key_pem: bytes


def identity_uri(federation: str, organization: str, role: str, name: str) -> str:
    return f"spiffe://{federation}/{organization}/{role}/{name}"


def create_authority(organization: str, now: datetime.datetime) -> Authority:
    """A self-signed EC P-256 authority. `now` is in UTC."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(organization, certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def issue(
    authority: Authority, uri: str, now: datetime.datetime, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
) -> tuple[bytes, bytes]:
    """A certificate (PEM, with the authority's behind it) and its key (PEM) for both ends of mutual TLS."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _certificate(authority, key.public_key(), uri, now, hosts), _key_pem(key)


def certificate_request(name: str) -> tuple[bytes, bytes]:
    """A new key (PEM) and a request for a certificate of it (PEM). What the certificate says, its authority decides."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def certify(
    authority: Authority, request_pem: bytes, uri: str, now: datetime.datetime, hosts: tuple[str, ...]
) -> bytes:
    """A certificate for the key of a request; nothing else of the request is taken over.

    Raises InvalidInput (code `bad_certificate_request`) for what is no request, or not signed by its own EC key.
    """
    return _certificate(authority, _requested_key(request_pem), uri, now, hosts)


def fits_request(certificate_pem: bytes, request_pem: bytes, *hosts: str) -> bool:
    """Whether a certificate is for the key of this request, and for all of these hosts."""
    if not names_hosts(certificate_pem, hosts):
        return False
    return x509.load_pem_x509_certificate(certificate_pem).public_key() == _requested_key(request_pem)


def names_hosts(certificate_pem: bytes, hosts: Iterable[str]) -> bool:
    """Whether a certificate (the first, in PEM) is for all of these hosts."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound):
        return False
    return all(_host(host) in names for host in hosts)


def _requested_key(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(request_pem)
    except ValueError as error:
        raise InvalidInput(f"no certificate request: {error}", code="bad_certificate_request") from None
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not request.is_signature_valid:
        raise InvalidInput("a certificate request must be signed by its own EC key", code="bad_certificate_request")
    return key


def _certificate(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    uri: str,
    now: datetime.datetime,
    hosts: tuple[str, ...],
) -> bytes:
    issuer = x509.load_pem_x509_certificate(authority.certificate_pem)
    issuer_key = serialization.load_pem_private_key(authority.key_pem, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), *map(_host, hosts)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, authority.organization),
                    x509.NameAttribute(NameOID.COMMON_NAME, uri.rsplit("/", 1)[-1][:64]),
                ]
            )
        )
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_key_of(issuer, issuer_key), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + authority.certificate_pem


def _key_of(issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    """By the authority's own name for its key: cert-manager, in Go, makes it in another way, and TLS wants it equal."""
    try:
        named = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(named.value)


def ensure_authority(folder: Path, organization: str) -> Authority:
    """Read an organization's authority from its folder, or make it there."""
    certificate, key = folder / CERTIFICATE_FILE, folder / KEY_FILE
    if certificate.exists() and key.exists():
        return Authority(organization, certificate.read_bytes(), key.read_bytes())
    authority = create_authority(organization, _now())
    write_atomic(key, authority.key_pem, mode=SECRET_MODE)
    write_atomic(certificate, authority.certificate_pem)
    return authority


def ensure_certificate(authority: Authority, folder: Path, uri: str) -> None:
    """Issue a certificate into a folder, unless one with enough life left is there."""
    certificate, key = folder / CERTIFICATE_FILE, folder / KEY_FILE
    if certificate.exists() and key.exists() and not needs_renewal(certificate.read_bytes(), _now()):
        return
    certificate_pem, key_pem = issue(authority, uri, _now())
    write_atomic(key, key_pem, mode=SECRET_MODE)
    write_atomic(certificate, certificate_pem)


def needs_renewal(certificate_pem: bytes, now: datetime.datetime) -> bool:
    """Whether less than a third of the certificate's life is left."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - now < life * RENEW_BELOW


def der_of(certificate_pem: bytes) -> bytes:
    """Of the first certificate in it. Raises ValueError where there is none."""
    return x509.load_pem_x509_certificates(certificate_pem)[0].public_bytes(serialization.Encoding.DER)


def certificate_der(path: Path) -> bytes:
    """Of a PEM file. Raises InvalidInput (code `bad_certificate`)."""
    try:
        return der_of(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} holds no certificate in PEM: {error}", code="bad_certificate") from None


def read_authority(der: bytes, organization: str) -> bytes:
    """A certificate authority (DER) that somebody else names, as PEM.

    Raises InvalidInput (code `bad_authority`) for what cannot be this organization's: it signs certificates, its own
    among them, and its subject names this organization and no other, as a server tells by it whose certificate it sees.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise InvalidInput(
            f"the authority of {organization} is no self-signed certificate of an authority (X.509, DER): {error}",
            code="bad_authority",
        ) from None
    if not is_authority:
        raise InvalidInput(
            f"the certificate may not issue others; give that of the authority of {organization}", code="bad_authority"
        )
    if names != [organization]:
        raise InvalidInput(
            f"the authority is of {', '.join(names) or 'nobody'}; that of {organization} must have the subject "
            f"organization {organization!r} and no other",
            code="bad_authority",
        )
    return certificate.public_bytes(serialization.Encoding.PEM)


def trust_bundle(authorities: list[Authority]) -> bytes:
    """The authorities of all members, as PEM."""
    return b"".join(authority.certificate_pem for authority in authorities)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
