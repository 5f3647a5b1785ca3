"""Certificates: renewed in time, written so that keys stay secret and no crash leaves half of one."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from talkoo_core.errors import InvalidInput
from talkoo_runtime.pki import (
    CERTIFICATE_DAYS,
    CLOCK_SKEW,
    Authority,
    create_authority,
    der_of,
    ensure_authority,
    ensure_certificate,
    identity_uri,
    issue,
    needs_renewal,
    read_authority,
    trust_bundle,
)

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
URI = identity_uri("town", "north", "ledger", "north-ledger")


def test_a_certificate_names_its_service_and_its_hosts() -> None:
    authority = create_authority("north", NOW)
    pem, _ = issue(authority, URI, NOW, ("localhost", "127.0.0.1", "ledger.north.example"))
    leaf, issuer = x509.load_pem_x509_certificates(pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [URI]
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "ledger.north.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    leaf.verify_directly_issued_by(issuer)
    constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def signed_by_itself(*organizations: str, issues: bool = True) -> bytes:
    """A certificate (DER) as one could make it who wants to be taken for somebody else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organizations])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=issues, path_length=None), critical=True)
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize("key_name", [b"named by others", None], ids=["named in another way", "not named"])
def test_what_an_authority_issues_is_accepted_however_it_names_its_key(tmp_path: Path, key_name: bytes | None) -> None:
    """cert-manager's authorities are such; who verifies compares the names."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "north")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    now = datetime.datetime.now(datetime.UTC)
    made = made.serial_number(1).not_valid_before(now - CLOCK_SKEW).not_valid_after(now + datetime.timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    if key_name is not None:
        made = made.add_extension(x509.SubjectKeyIdentifier(key_name), critical=False)
    pem = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificate, own_key = issue(Authority("north", pem, key_pem), URI, now)
    (tmp_path / "both.pem").write_bytes(certificate + own_key)

    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(tmp_path / "both.pem")
    client.load_verify_locations(cadata=pem.decode())
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(up, down, server_side=True)
    ours = client.wrap_bio(down, up, server_hostname="localhost")
    for end in (ours, theirs):  # each waits for what the other has not said yet
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    ours.do_handshake()
    assert ours.getpeercert()


def test_an_authority_that_somebody_names_must_be_its_own() -> None:
    authority = create_authority("south", NOW)
    assert read_authority(der_of(authority.certificate_pem), "south") == authority.certificate_pem
    leaf, _ = issue(authority, URI, NOW)
    wrong = {
        "is no self-signed certificate": [b"", b"no certificate", authority.certificate_pem, der_of(leaf)],
        "may not issue others": [signed_by_itself("south", issues=False)],
        "the authority is of": [signed_by_itself("north"), signed_by_itself("south", "north"), signed_by_itself()],
    }
    for words, attempts in wrong.items():
        for der in attempts:
            with pytest.raises(InvalidInput, match=words) as caught:
                read_authority(der, "south")
            assert caught.value.code == "bad_authority"


@pytest.mark.parametrize(("age", "renew"), [(0.0, False), (0.66, False), (0.67, True), (1.0, True), (2.0, True)])
def test_a_certificate_is_renewed_in_the_last_third_of_its_life(age: float, renew: bool) -> None:
    pem, _ = issue(create_authority("north", NOW), URI, NOW)
    assert needs_renewal(pem, NOW + datetime.timedelta(days=CERTIFICATE_DAYS) * age) is renew


def test_files_are_made_once_and_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    authority = ensure_authority(tmp_path / "ca", "north")
    ensure_certificate(authority, tmp_path / "ledger", URI)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.pem")}
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in before} == {
        "private-key.pem": "0o600",
        "certificate.pem": "0o644",
    }
    assert ensure_authority(tmp_path / "ca", "north") == authority
    ensure_certificate(authority, tmp_path / "ledger", URI)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.pem")} == before


@pytest.mark.parametrize("left", ["private-key.pem", "certificate.pem"])
def test_half_of_what_a_crash_left_is_made_anew(tmp_path: Path, left: str) -> None:
    authority = ensure_authority(tmp_path / "ca", "north")
    ensure_certificate(authority, tmp_path / "ledger", URI)
    for path in (tmp_path / "ledger").iterdir():
        if path.name != left:
            path.unlink()
    before = (tmp_path / "ledger" / left).read_bytes()
    ensure_certificate(authority, tmp_path / "ledger", URI)
    assert (tmp_path / "ledger" / left).read_bytes() != before


def test_a_bundle_is_all_authorities_and_no_key() -> None:
    bundle = trust_bundle([create_authority("north", NOW), create_authority("south", NOW)])
    assert len(x509.load_pem_x509_certificates(bundle)) == 2
    assert b"PRIVATE" not in bundle
