"""The Federation object: what this organization's part of the federation looks like now, and one rule here."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from talkoo_api.ledger.v1 import service_pb2, state_pb2

from talkoo.client_async import AsyncClient
from talkoo.membership import Membership
from talkoo_core.amounts import format_tlk, parse_tlk
from talkoo_core.errors import NotFound, TalkooError
from talkoo_operator.api import API_SERVER_AWAY, FEDERATIONS, GROUP, VERSION, KubernetesApi
from talkoo_operator.founding import TRUST_FILE
from talkoo_operator.joining import Joining
from talkoo_operator.limits import Limits
from talkoo_operator.objects import AT_ONCE_S, Objects, Outrun
from talkoo_operator.queue import Key
from talkoo_operator.settings import OperatorSettings
from talkoo_operator.status import timestamp, with_ready
from talkoo_operator.trust import trust_now

log = logging.getLogger(__name__)
NAME = "federation"
"""A namespace has one at most, and the operator looks after the one in its own."""
REVIEW_S = 10.0
MAKE_AGAIN_S = 5.0
LAGGING_S = 60.0
"""A ledger whose newest block is older does not go on."""
Object = dict[str, Any]


async def ensure_federation(api: KubernetesApi, settings: OperatorSettings) -> None:
    """Until it is there. The chart makes none, so that an upgrade never takes a person's `spec` back."""
    body = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Federation",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/instance": settings.release}},
        "spec": {},
    }
    said = ""
    while True:
        try:
            await api.ensure_object(FEDERATIONS, settings.namespace, body)
            return
        except TalkooError as error:
            if said != str(error):
                log.warning("the Federation is not made yet: %s", error)
            said = str(error)
        await asyncio.sleep(MAKE_AGAIN_S)


class FederationController:
    """`owner` is a client with the organization owner's key; it only reads here."""

    def __init__(
        self,
        api: KubernetesApi,
        owner: AsyncClient,
        settings: OperatorSettings,
        now: Callable[[], float],
        limits: Limits,
    ) -> None:
        self._owner = owner
        self._settings = settings
        self._now = now
        self._limits = limits
        self._api = api
        self._objects = Objects(api, FEDERATIONS, "Federation", now)
        self._joining = Joining(api, owner, settings)
        self._refused: tuple[str, ...] = ()
        """What was said about authorities that cannot be trusted, once."""
        self._generation, self._looked_at = -1, float("-inf")

    async def work(self, key: Key) -> float | None:
        federation = await self._objects.read(key)
        ours = key == (self._settings.namespace, NAME)
        if federation is None or not ours:
            if ours:
                self._limits.default_utlk = None
            return await self._not_ours(federation)
        generation = federation["metadata"]["generation"]
        left_s = self._looked_at + REVIEW_S - time.monotonic()
        if generation == self._generation and left_s > 0:
            return left_s  # our own write woke us: each look finds a new block, and would write again
        self._generation, self._looked_at = generation, time.monotonic()
        limit = federation.get("spec", {}).get("spendLimit")
        self._limits.default_utlk = None if limit is None else parse_tlk(limit)
        status = dict(federation.get("status", {}))
        try:
            status |= await self._look(federation)
            lag_s = int(status["lagSeconds"])
            goes_on = lag_s < LAGGING_S
            words = f"block {status['height']} is {lag_s} s old"
            status = with_ready(
                status,
                goes_on,
                "BlocksAreDecided" if goes_on else "LedgerStands",
                words,
                *self._objects.when(federation),
            )
        except Outrun:
            self._generation = -1
            return AT_ONCE_S
        except TalkooError as error:
            if error.code == API_SERVER_AWAY:
                raise
            status = federation.get("status", {})  # with what was noted on the way
            status = with_ready(status, None, "LedgerUnavailable", error.message, *self._objects.when(federation))
        try:
            await self._objects.write(federation, status)
        except Outrun:
            self._generation = -1
            return AT_ONCE_S
        return REVIEW_S

    async def _not_ours(self, federation: Object | None) -> float | None:
        if federation is None:
            return None
        words = f"the Federation of this release is {self._settings.namespace}/{NAME}; this one has no effect"
        status = with_ready(federation.get("status", {}), False, "NotOurs", words, *self._objects.when(federation))
        try:
            await self._objects.write(federation, status)
        except Outrun:
            return AT_ONCE_S
        return None

    async def _look(self, federation: Object) -> Object:
        now_on = await self._owner.status()
        organizations = await self._owner.organizations()
        own = next((each for each in organizations if each.name == self._settings.organization), None)
        applications = await Membership(self._owner).applications()
        if not now_on.catching_up:  # an earlier state may say that a member has left, which has come back since
            await self._trust(federation, organizations, now_on.height)
        joining: Object = {}
        if self._settings.stake and not now_on.catching_up:
            joining = {"joining": await self._join(federation, own)}
        return joining | {
            "organization": self._settings.organization,
            "chainId": now_on.chain_id,
            "height": now_on.height,
            "lagSeconds": max(0, int(self._now() - now_on.time_ns / 1e9)),
            "appHash": now_on.app_hash.hex(),
            "catchingUp": now_on.catching_up,
            "peers": sorted(now_on.peers),
            "members": [_member(each, now_on) for each in organizations],
            "applications": [{"name": each.name, "approvals": sorted(each.approvals)} for each in applications],
            "account": await self._account(own),
            "keys": _keys(own),
            "certificates": self._certificates(),
        }

    async def _join(self, federation: Object, own: state_pb2.Organization | None) -> Object:
        async def note(joining: Object) -> None:
            await self._objects.write(federation, {**federation.get("status", {}), "joining": joining})

        return await self._joining.go_on(own, dict(federation.get("status", {}).get("joining", {})), note)

    async def _trust(self, federation: Object, organizations: list[state_pb2.Organization], height: int) -> None:
        """The trust bundle follows the ledger; pods see it when their kubelet looks next, within about a minute."""
        settings = self._settings
        name = f"{settings.release}-federation"
        try:
            bundle = (await self._api.config_map(settings.namespace, name))[TRUST_FILE]
            made = trust_now(bundle, organizations, height, settings.organization)
            if made.bundle != bundle:
                await self._api.patch_config_map(settings.namespace, name, {TRUST_FILE: made.bundle.decode()})
        except NotFound:  # outside of a cluster of the chart's the bundle is somebody else's
            return
        except TalkooError as error:
            log.warning("the trust bundle does not follow the ledger: %s", error)
            return
        if made.refused != self._refused:
            self._refused = made.refused
            for words in made.refused:
                await self._objects.event(federation, "Warning", "NotTrusted", words)
        changed = [f"trusts {', '.join(made.added)}"] if made.added else []
        changed += [f"trusts {', '.join(made.removed)} no more"] if made.removed else []
        if changed:
            words = f"{settings.organization} {' and '.join(changed)}"
            log.info("%s", words)
            await self._objects.event(federation, "Normal", "TrustChanged", words)

    async def _account(self, own: state_pb2.Organization | None) -> Object:
        try:
            balance_utlk = (await self._owner.account()).balance_utlk
        except NotFound:
            balance_utlk = 0
        stake_utlk = own.stake_utlk if own is not None else 0
        return {
            "address": self._owner.address,
            "balance": format_tlk(balance_utlk),
            "stake": format_tlk(stake_utlk),
        }

    def _certificates(self) -> list[Object]:
        """The operator's own, its organization's authority, and the authorities of all whom it trusts."""
        settings = self._settings
        files = {
            "operator": settings.certificate,
            "authority": settings.authority_certificate,
            "trusted": settings.trust_bundle,
        }
        return [
            {
                "name": name,
                "subject": certificate.subject.rfc4514_string(),
                "sha256": hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
                "expires": timestamp(certificate.not_valid_after_utc.astimezone(UTC).timestamp()),
            }
            for name, path in files.items()
            for certificate in x509.load_pem_x509_certificates(Path(path).read_bytes())[
                : None if name == "trusted" else 1
            ]
        ]


def _member(each: state_pb2.Organization, now_on: service_pb2.Status) -> Object:
    state = "Member"
    if each.left_height:
        state = "Left"
    elif each.jailed_until_height > now_on.height:
        state = "Jailed"
    elif not each.power:
        state = "WithoutPower"
    return {"name": each.name, "power": each.power, "stake": format_tlk(each.stake_utlk), "state": state}


def _keys(own: state_pb2.Organization | None) -> Object:
    """Fingerprints: SHA-256 of the public keys that the ledger has; empty while we are no member."""
    if own is None:
        return {}
    return {
        "ownerSha256": hashlib.sha256(own.owner_key).hexdigest(),
        "consensusSha256": hashlib.sha256(own.validator_key).hexdigest(),
        "scheduler": own.scheduler,
        "validator": own.validator,
    }
