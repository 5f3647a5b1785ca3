"""One authority for a test cluster, and client configurations for its parts."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE = datetime.timedelta(days=365)


class ClusterAuthority:
    """Keys and certificates in a folder; nothing of it is meant to outlive the cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "talkoo-test-cluster")])
        certificate = self._builder(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.certificate = folder / "ca.pem"
        self.certificate.write_bytes(_pem(certificate.sign(self._key, hashes.SHA256())))

    def issue(
        self, name: str, common_name: str, organization: str = "", hosts: tuple[str, ...] = ()
    ) -> tuple[Path, Path]:
        """Certificate and key files, for a client and, with `hosts`, for a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if organization:
            attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        builder = self._builder(x509.Name(attributes), key.public_key()).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        certificate_file, key_file = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate_file.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        _write_key(key_file, key)
        return certificate_file, key_file

    def kubeconfig(self, path: Path, server: str, common_name: str, organization: str = "") -> Path:
        """A client configuration with its certificate inside."""
        certificate, key = self.issue(path.stem, common_name, organization)
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "talkoo", "cluster": {"server": server, **_inline("certificate-authority", self.certificate)}}
            ],
            "users": [
                {"name": "self", "user": _inline("client-certificate", certificate) | _inline("client-key", key)}
            ],
            "contexts": [{"name": "talkoo", "context": {"cluster": "talkoo", "user": "self"}}],
            "current-context": "talkoo",
        }
        path.write_text(json.dumps(document, indent=1))
        path.chmod(0o600)
        return path

    def service_account_key(self) -> tuple[Path, Path]:
        """The private and the public key of service-account tokens."""
        key = rsa.generate_private_key(65537, 2048)
        private, public = self._folder / "service-accounts.key", self._folder / "service-accounts.pub"
        _write_key(private, key)
        public.write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return private, public

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + LIFE)
        )


def _inline(field: str, path: Path) -> dict[str, str]:
    return {f"{field}-data": base64.b64encode(path.read_bytes()).decode()}


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
