"""Settings of the validator."""

from __future__ import annotations

from talkoo_runtime.service_settings import ServiceSettings


class ValidatorSettings(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the ledger and the blobs are, which key signs verdicts, and what re-computing may cost."""

    ledger: str
    """host:port of the organization's own ledger node."""
    blobs: str
    """URL of the blob store, for example file:///var/lib/talkoo/blobs."""
    account_key: str
    """Key file of the organization's verdict account (`validator_key` of genesis)."""
    cache_bytes: int = 2 * 1024**3
    """Blobs kept between audits. One audit's own blobs are never dropped, so a large one may exceed it."""
    recompute_timeout_s: float = 600.0
    """A re-computation that takes longer is ended and tried again."""
