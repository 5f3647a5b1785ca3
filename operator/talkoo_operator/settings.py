"""Settings of the operator."""

from __future__ import annotations

import msgspec

from talkoo_operator.identity import NewAccount


class OperatorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the organization's gateway is, which keys the operator shows, and what it looks after."""

    name: str
    """Of this replica, for example the pod's name."""
    namespace: str
    """Its own: the Lease of its leader lies there."""
    release: str
    """Prefix of the names of the release's objects."""
    organization: str
    federation: str
    gateway: str
    """host:port of the organization's gateway."""
    certificate: str
    private_key: str
    trust_bundle: str
    """PEM files; the certificate's role is `user`."""
    owner_key: str
    """Key file of the organization's owner, who endorses its nodes and funds their stakes."""
    authority_certificate: str
    authority_key: str
    """The organization's authority, which certifies its nodes."""
    node_balance: str = "1 TLK"
    """What a node's account holds beside its stake, for fees."""
    stake: str = ""
    """Bonded once this organization is a member and has the tokens; empty: nothing, as for a founder."""
    service_balance: str = "5 TLK"
    """What scheduler and validator of an organization that joins get, for fees."""
    accounts: tuple[NewAccount, ...] = ()
    """Namespaces whose accounts get tokens when it has joined."""
    watch_namespaces: tuple[str, ...] = ()
    """Where TrainingTasks are looked after; none: in all namespaces."""
    watch_nodes: bool = True
    """Look after GPUNodes, which are cluster-scoped: false where the operator may not."""
    resync_s: float = 60.0
    """All objects are listed so often, and what a watch did not tell is looked at; the liveness probe goes by it."""
    probe_listen: str = "0.0.0.0:8080"
    """host:port of the liveness probe."""
    log_level: str = "info"
    metrics_listen: str = ""
    """host:port of the page for Prometheus (docs/monitoring.md), plain HTTP: keep it inside; empty: off."""
