"""Who a server lets in: the holder of a certificate issued by its own organization's authority, and by it directly.

TLS alone would also take a chain, and gRPC's does not hold an authority to its path length: any member could issue an
authority that is named like another member, and below it certificates in that member's name. So each certificate's
signature is checked once more, against the authority that the trust bundle holds for the organization it names.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from talkoo_core.errors import InvalidInput, NotFound, PermissionDenied
from talkoo_runtime.identity import identity_of_certificate

MAX_ADMITTED = 1024


class Admission:
    """Remembers whom it let in, until the trust bundle changes."""

    def __init__(self) -> None:
        self._bundle = b""
        self._admitted: set[bytes] = set()

    def trust(self, bundle: bytes) -> None:
        """Let in the members of this bundle (PEM), from the next call on."""
        self._bundle = bundle
        self._admitted = set()

    def check(self, certificate_pem: bytes) -> None:
        """Raises PermissionDenied (codes `no_identity`, `wrong_issuer`)."""
        if certificate_pem in self._admitted:
            return
        identity = identity_of_certificate(certificate_pem)
        if not self._issued_by_a_member(certificate_pem):
            raise PermissionDenied(
                f"the certificate of {identity} was not issued by the authority of {identity.organization} itself",
                code="wrong_issuer",
            )
        if len(self._admitted) >= MAX_ADMITTED:
            self._admitted.clear()
        self._admitted.add(certificate_pem)

    def _issued_by_a_member(self, certificate_pem: bytes) -> bool:
        """`identity_of_certificate` has held the issuer's name against the identity; here its key signs for it."""
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature

        certificate = x509.load_pem_x509_certificate(certificate_pem)
        for authority in x509.load_pem_x509_certificates(self._bundle):
            if authority.subject != certificate.issuer:
                continue
            try:
                certificate.verify_directly_issued_by(authority)
            except (ValueError, TypeError, InvalidSignature):
                return False
            return True
        return False


def check_certificate_files(certificate: Path, private_key: Path, trust_bundle: Path) -> None:
    """Say what is wrong with a service's files before gRPC refuses them without a word.

    Raises NotFound (a file is missing) or InvalidInput (codes `bad_certificate`, `bad_trust_bundle`). Two authorities
    of one name are refused: either could issue certificates for the other's services.
    """
    for path in (certificate, private_key, trust_bundle):
        if not path.is_file():
            raise NotFound(f"there is no certificate file {path}; `talkoo up` makes them")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, private_key)
    except (ssl.SSLError, OSError) as error:
        raise InvalidInput(
            f"{certificate} and {private_key} are not a certificate and its key ({_reason(error)}); issue them anew",
            code="bad_certificate",
        ) from None
    try:
        context.load_verify_locations(trust_bundle)
    except (ssl.SSLError, OSError) as error:
        raise InvalidInput(
            f"{trust_bundle} holds no authorities ({_reason(error)}); it is the members' certificates in PEM",
            code="bad_trust_bundle",
        ) from None
    names = [str(authority["subject"]) for authority in context.get_ca_certs()]
    if len(set(names)) < len(names):
        raise InvalidInput(
            f"{trust_bundle} holds two authorities of one name; keep only the one that its organization vouches for",
            code="bad_trust_bundle",
        )


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or "not PEM"
    return "not PEM" if reason.startswith("[SSL]") else reason.replace("_", " ").lower()
