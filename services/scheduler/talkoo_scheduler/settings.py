"""Settings of a scheduler."""

from __future__ import annotations

from talkoo_runtime.service_settings import ServiceSettings


class SchedulerSettings(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a scheduler needs beyond what every service has."""

    ledger: str
    """host:port of the own organization's ledger node."""
    etcd: tuple[str, ...]
    """host:port of the etcd servers."""
    account_key: str
    """Key file of the organization's scheduler account, which sends placements."""
    offer_ttl_s: int = 5
    """An offer that is not renewed for so long is gone, and so is a leader."""
    share_with: tuple[str, ...] = ()
    """host:port of schedulers with another etcd, which are told what the own organization's nodes offer."""
