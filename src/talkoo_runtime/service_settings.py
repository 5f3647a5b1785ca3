"""Settings that every service has; each room adds its own fields in a subclass.

Read once per process by `talkoo_runtime.settings.load_settings` from a TOML file, with `TALKOO_<FIELD>` overrides.
"""

from __future__ import annotations

import msgspec


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who the process is, where it listens, which keys it shows."""

    federation: str
    organization: str
    name: str
    """Unique in the federation, for example `north-ledger`."""
    listen: str
    """host:port of the gRPC server; always mutual TLS."""
    state_dir: str
    """The process's own folder. It is made when absent."""
    certificate: str
    private_key: str
    trust_bundle: str
    """PEM files: own certificate chain, its key, and the certificate authorities of all member organizations."""
    log_level: str = "info"
    traces_dir: str = ""
    """Folder for spans as JSON lines; empty: no spans are written."""
    metrics_listen: str = ""
    """host:port of the page for Prometheus (docs/monitoring.md), plain HTTP: keep it inside; empty: off."""
