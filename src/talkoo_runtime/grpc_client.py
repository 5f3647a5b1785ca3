"""Channels with mutual TLS, trace context on every call, and our errors back from the wire."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from talkoo_runtime.grpc_errors import answer_of, error_from_rpc, first_status, raise_from_rpc
from talkoo_runtime.service_settings import ServiceSettings
from talkoo_runtime.traced_channel import TracedChannel

__all__ = [
    "answer_of",
    "drop_closed_channels",
    "error_from_rpc",
    "files_seen",
    "first_status",
    "member_channel",
    "open_channel",
    "raise_from_rpc",
    "service_channel",
]

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000
RECONNECT_FIRST_MS = 100
RECONNECT_MAX_MS = 2_000
CONNECT_TIMEOUT_MS = 5_000
"""For TCP and TLS together. gRPC calls this option a least pause, but gives a connection no more time than it: with
100 ms no handshake over a far link came to its end, nor one on a busy machine."""

OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.enable_http_proxy", 0),
)


def open_channel(target: str, certificate: Path, private_key: Path, trust_bundle: Path) -> grpc.aio.Channel:
    """A lazy channel to `host:port` that shows our certificate and takes those of the bundle's authorities.

    Raises NotFound when a file is missing.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_pem(trust_bundle), private_key=_pem(private_key), certificate_chain=_pem(certificate)
    )
    return TracedChannel(grpc.aio.secure_channel(target, credentials, options=OPTIONS))


def service_channel(settings: ServiceSettings, target: str) -> grpc.aio.Channel:
    """A channel of a service to another one."""
    return open_channel(target, Path(settings.certificate), Path(settings.private_key), Path(settings.trust_bundle))


def drop_closed_channels() -> None:
    """For whoever dials again and again: let go of channels that were closed after their calls failed.

    gRPC's objects of a failed call refer to each other, and until Python's cycle collector finds them their channel
    goes on dialling, closed or not: a process that collects seldom would dial ever more. Old objects are not looked at.
    """
    gc.collect(1)


def files_seen(settings: ServiceSettings) -> tuple[int, ...]:
    """Differs once a certificate or the trust bundle has changed.

    A channel keeps what it has read: who keeps channels opens another one then, or a newcomer's servers stay unknown.
    """
    files = (settings.certificate, settings.private_key, settings.trust_bundle)
    try:
        return tuple(Path(file).stat().st_mtime_ns for file in files)
    except OSError:  # in the middle of a change
        return ()


def member_channel(settings: ServiceSettings, target: str, organization: str) -> grpc.aio.Channel:
    """A channel to `host:port` that takes only certificates of this organization's own authority.

    The files are read anew each time. Raises NotFound where the trust bundle holds no authority of that name.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=authority_of(_pem(Path(settings.trust_bundle)), organization),
        private_key=_pem(Path(settings.private_key)),
        certificate_chain=_pem(Path(settings.certificate)),
    )
    return TracedChannel(grpc.aio.secure_channel(target, credentials, options=OPTIONS))


def authority_of(bundle_pem: bytes, organization: str) -> bytes:
    """An organization's authority (PEM) out of a trust bundle. Raises NotFound (code `no_authority`)."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    from talkoo_core.errors import NotFound

    for authority in x509.load_pem_x509_certificates(bundle_pem):
        names = authority.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        if names and names[0].value == organization:
            return authority.public_bytes(Encoding.PEM)
    raise NotFound(
        f"the trust bundle holds no authority of {organization}; add that member's authority to the file",
        code="no_authority",
    )


def _pem(path: Path) -> bytes:
    from talkoo_core.errors import NotFound

    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no certificate file {path}; `talkoo up` makes them") from None
