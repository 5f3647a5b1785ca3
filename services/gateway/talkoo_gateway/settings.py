"""Settings of the gateway."""

from __future__ import annotations

from talkoo_runtime.service_settings import ServiceSettings


class GatewaySettings(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the gateway is reached over HTTPS, and what it stands in front of."""

    http_listen: str
    """host:port of the REST server; always HTTPS, with the same certificate as gRPC."""
    ledger: str
    scheduler: str
    validator: str
    """host:port of the organization's own services."""
    blobs: str
    """URL of the blob store, for example file:///var/lib/talkoo/blobs."""
