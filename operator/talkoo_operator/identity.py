"""What an organization's parts need before they start: keys, certificates, and for a new federation its genesis.

`python -m talkoo_operator.identity --settings FILE` makes what is not there and renews certificates near their end;
nothing else that exists is changed. A Job of each revision runs it, and a CronJob every day. Certificates that
cert-manager issues are left to it.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from talkoo.federation.beginning import ORGANIZATION_KEYS
from talkoo_core.errors import Conflict, InvalidInput, NotFound, PermissionDenied, Unavailable
from talkoo_core.signing import PrivateKey
from talkoo_operator.api import KubernetesApi
from talkoo_operator.founding import (
    CARD_FILE,
    GENESIS_FILE,
    TRUST_FILE,
    Card,
    Founder,
    card_text,
    genesis_of,
    make_card,
    read_card,
    trust_of,
)
from talkoo_operator.invitation import (
    APPLICATION_FILE,
    INVITATION_FILE,
    INVITED_TO,
    Invitation,
    application_manifest,
    invitation_text,
    read_invitation,
    signed_application,
)
from talkoo_operator.issued import issued_authority, with_authority
from talkoo_operator.once import run_once
from talkoo_runtime.keys import address_of, key_document, key_of_document
from talkoo_runtime.pki import (
    CERTIFICATE_FILE,
    KEY_FILE,
    Authority,
    create_authority,
    identity_uri,
    issue,
    names_hosts,
    needs_renewal,
)

SERVED = ("ledger", "scheduler", "validator", "gateway", "etcd")
"""Roles with a server, whose certificates name their Services; the operator is a user of the gateway."""
ACCOUNT_SECRET = "talkoo-account"  # noqa: S105  # the name of a Secret, not one
ACCOUNT_FILE = "account.key"
TOKEN_FILE = "rest.token"  # noqa: S105  # a file's name
CERT_MANAGER: Final = "cert-manager"
ISSUED_TIMEOUT_S, POLL_S = 120.0, 1.0
"""How long cert-manager may take for the organization's authority."""
FOUNDERS_TIMEOUT_S = 600.0
"""How long the other founders may take to publish their cards; the Job is tried again after that."""


MakeData = Callable[[], dict[str, bytes]]


class NewAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A namespace that gets an account with tokens in the genesis of a new federation."""

    namespace: str
    balance: str
    """Such as `500 TLK`."""


class Exposed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A service that is reached from outside of the cluster."""

    service: Literal["ledger", "scheduler", "gateway"]
    endpoint: str
    """host:port there; its certificate names the host."""


class IdentitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who we are and what a new federation begins with."""

    namespace: str
    release: str
    """Prefix of every object's name."""
    federation: str
    organization: str
    stake: str = "1000 TLK"
    balance: str = "100000 TLK"
    """The organization owner's: it funds its nodes' stakes."""
    service_balance: str = "5 TLK"
    """For the fees of scheduler and validator."""
    accounts: tuple[NewAccount, ...] = ()
    issuer: Literal["chart", "cert-manager"] = "chart"
    """Who issues certificates: this program, or cert-manager; then only the trust bundle is made here."""
    founders: tuple[Founder, ...] = ()
    """Organizations that begin the federation together, this one among them; none: this one alone."""
    exposed: tuple[Exposed, ...] = ()
    """Services that are reached from outside of the cluster. Where all are that newcomers call, others are invited."""
    agent_port: int = 0
    """Of agents on their nodes' own addresses, for the invitation; 0: they are not reached from outside."""
    invitation: str = ""
    """A member's invitation (file): nothing is founded, this organization joins; empty: see `founders`."""
    grant: str = "1100 TLK"
    """What a newcomer asks the member for that admits it."""
    application_nonce: int = 0
    """Of the owner's account: 0 unless it has sent something before."""


class Identity:
    """One run of making what is not there."""

    def __init__(self, api: KubernetesApi, settings: IdentitySettings) -> None:
        self._api = api
        self._settings = settings
        self._labels = {
            "app.kubernetes.io/name": "talkoo",
            "app.kubernetes.io/instance": settings.release,
            "app.kubernetes.io/managed-by": "talkoo-identity",
        }

    async def ensure(self) -> list[str]:
        """What was made or renewed, in words. May be run again at any time, also after a crash in its middle."""
        made: list[str] = []
        settings = self._settings
        authority = await self._authority(made)
        keys = await self._keys(f"{settings.release}-keys", settings.namespace, ORGANIZATION_KEYS, made)
        accounts: dict[str, tuple[NewAccount, PrivateKey]] = {}
        for account in settings.accounts:
            found = await self._keys(ACCOUNT_SECRET, account.namespace, ("account",), made)
            accounts[account.namespace] = (account, found["account"])
        if settings.invitation:
            await self._join(authority, keys, made)
        else:
            await self._federation(authority, keys, accounts, made)
        await self._trusted(authority, made)
        await self._invite(made)
        await self._secret(f"{settings.release}-storage", settings.namespace, _storage_keys, made)
        await self._secret(f"{settings.release}-gateway-token", settings.namespace, _rest_token, made)
        if settings.issuer != CERT_MANAGER:
            for role in (*SERVED, "operator"):
                await self._certificate(authority, role, made)
        return made

    async def _authority(self, made: list[str]) -> Authority:
        name = f"{self._settings.release}-authority"
        if self._settings.issuer == CERT_MANAGER:
            return await self._issued(name)

        def make() -> dict[str, bytes]:
            new = create_authority(self._settings.organization, _now())
            return {CERTIFICATE_FILE: new.certificate_pem, KEY_FILE: new.key_pem}

        found = await self._secret(name, self._settings.namespace, make, made)
        return Authority(self._settings.organization, found[CERTIFICATE_FILE], found[KEY_FILE])

    async def _issued(self, name: str) -> Authority:
        """The authority that cert-manager made. Raises Unavailable when it has not in time."""
        settings = self._settings
        deadline = asyncio.get_running_loop().time() + ISSUED_TIMEOUT_S
        while True:
            try:
                found = await self._api.secret(settings.namespace, name)
                return issued_authority(settings.organization, found, f"the Secret {settings.namespace}/{name}")
            except NotFound:
                if asyncio.get_running_loop().time() > deadline:
                    raise Unavailable(
                        f"cert-manager has not made the Secret {settings.namespace}/{name} within "
                        f"{ISSUED_TIMEOUT_S:.0f} s; `kubectl describe certificate {name}` says why",
                        code="not_issued",
                    ) from None
            await asyncio.sleep(POLL_S)

    async def _keys(self, name: str, namespace: str, which: tuple[str, ...], made: list[str]) -> dict[str, PrivateKey]:
        def make() -> dict[str, bytes]:
            return {f"{key}.key": key_document(secrets.token_bytes(32)).encode() for key in which}

        found = await self._secret(name, namespace, make, made)
        where = f"the Secret {namespace}/{name}"
        return {key: key_of_document(found.get(f"{key}.key", b"").decode(), where) for key in which}

    async def _federation(
        self,
        authority: Authority,
        keys: dict[str, PrivateKey],
        accounts: dict[str, tuple[NewAccount, PrivateKey]],
        made: list[str],
    ) -> None:
        settings = self._settings
        name = f"{settings.release}-federation"
        try:
            await self._api.config_map(settings.namespace, name)
            return
        except NotFound:
            pass
        own = make_card(
            authority,
            keys,
            [(namespace, account.balance, key) for namespace, (account, key) in accounts.items()],
            stake=settings.stake,
            balance=settings.balance,
            service_balance=settings.service_balance,
            time_ns=time.time_ns(),
        )
        cards = await self._cards(own, made) if settings.founders else [own]
        genesis = json.dumps(genesis_of(settings.federation, cards), indent=2) + "\n"
        data = {GENESIS_FILE: genesis, TRUST_FILE: trust_of(cards)}
        try:
            await self._api.create_config_map(settings.namespace, name, data, self._labels)
        except Conflict:  # another run was quicker; its genesis is the one
            return
        made.append(f"ConfigMap {name}: the genesis of {settings.federation}")

    async def _join(self, authority: Authority, keys: dict[str, PrivateKey], made: list[str]) -> None:
        """The federation as the invitation has it, and the application for a member's administrator."""
        settings = self._settings
        if settings.founders:
            raise InvalidInput(
                "one founds a federation or joins one; leave federation.founders out", code="bad_settings"
            )
        path = Path(settings.invitation)
        invitation = read_invitation(await asyncio.to_thread(path.read_text, encoding="utf-8"), str(path))
        if invitation.federation != settings.federation:
            raise InvalidInput(
                f"the invitation is into {invitation.federation}; set federation.name to that", code="bad_settings"
            )
        name = f"{settings.release}-federation"
        trust = with_authority(invitation.trust.encode(), authority).decode()
        data = {GENESIS_FILE: invitation.genesis, TRUST_FILE: trust}
        try:
            await self._api.create_config_map(settings.namespace, name, data, self._labels)
            made.append(f"ConfigMap {name}: the genesis of {settings.federation}, into which we are invited")
        except Conflict:
            known = await self._api.config_map(settings.namespace, name)
            if known[GENESIS_FILE].decode() != invitation.genesis:
                raise Conflict(
                    f"the ConfigMap {name} has the genesis of another chain; to join with this release, delete it and "
                    "the ledger's claim, or install another release",
                    code="other_chain",
                ) from None
        signed = signed_application(invitation, authority, keys, settings.application_nonce)
        manifest = application_manifest(authority, address_of(keys["owner"]), signed, settings.grant)
        words = f"hand its {APPLICATION_FILE} to {invitation.organization}"
        await self._publish(f"{settings.release}-application", APPLICATION_FILE, manifest, words, made)

    async def _invite(self, made: list[str]) -> None:
        """Whoever knows where our services are reached may be invited by handing out what all members know."""
        settings = self._settings
        endpoints = {each.service: each.endpoint for each in settings.exposed}
        if endpoints.keys() < set(INVITED_TO):
            return
        known = await self._api.config_map(settings.namespace, f"{settings.release}-federation")
        invitation = Invitation(
            federation=settings.federation,
            organization=settings.organization,
            genesis=known[GENESIS_FILE].decode(),
            trust=known[TRUST_FILE].decode(),
            agent_port=settings.agent_port,
            **endpoints,
        )
        words = f"hand its {INVITATION_FILE} to whom you invite"
        await self._publish(f"{settings.release}-invitation", INVITATION_FILE, invitation_text(invitation), words, made)

    async def _publish(self, name: str, file: str, text: str, words: str, made: list[str]) -> None:
        """A ConfigMap of one file, as it is now."""
        namespace = self._settings.namespace
        try:
            if (await self._api.config_map(namespace, name)).get(file) == text.encode():
                return
            await self._api.patch_config_map(namespace, name, {file: text})
        except NotFound:
            await self._api.create_config_map(namespace, name, {file: text}, self._labels)
        made.append(f"ConfigMap {name}: {words}")

    async def _cards(self, own: Card, made: list[str]) -> list[Card]:
        """Publish our card, wait for those of the other founders. Raises Unavailable naming who is missing."""
        settings = self._settings
        if settings.organization not in [founder.organization for founder in settings.founders]:
            raise InvalidInput(
                f"{settings.organization} is not among its own founders; add it to federation.founders",
                code="bad_settings",
            )
        name = f"{settings.release}-card"
        try:
            await self._api.create_config_map(settings.namespace, name, {CARD_FILE: card_text(own)}, self._labels)
            made.append(f"ConfigMap {name}: what {settings.organization} brings into {settings.federation}")
        except Conflict:  # an earlier run published it: what others have read holds
            pass
        deadline = asyncio.get_running_loop().time() + FOUNDERS_TIMEOUT_S
        while True:
            found = [(founder, await self._card(founder)) for founder in settings.founders]
            missing = [founder.organization for founder, card in found if card is None]
            if not missing:
                return [card for _, card in found if card is not None]
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"no card of {', '.join(missing)} within {FOUNDERS_TIMEOUT_S:.0f} s; install their releases",
                    code="founders_missing",
                )
            await asyncio.sleep(POLL_S)

    async def _card(self, founder: Founder) -> Card | None:
        """None while it is not there, or while its release has not let us read it."""
        name = f"{founder.release}-card"
        try:
            found = await self._api.config_map(founder.namespace, name)
        except (NotFound, PermissionDenied):
            return None
        where = f"the ConfigMap {founder.namespace}/{name}"
        return read_card(founder.organization, found.get(CARD_FILE, b"").decode(errors="replace"), where)

    async def _trusted(self, authority: Authority, made: list[str]) -> None:
        """A renewed authority takes its own place in the trust bundle; other members' stay as they are."""
        settings = self._settings
        name = f"{settings.release}-federation"
        bundle = (await self._api.config_map(settings.namespace, name))[TRUST_FILE]
        wanted = with_authority(bundle, authority)
        if wanted == bundle:
            return
        await self._api.patch_config_map(settings.namespace, name, {TRUST_FILE: wanted.decode()})
        made.append(f"ConfigMap {name}: trusts the authority of {authority.organization} as it is now")

    async def _certificate(self, authority: Authority, role: str, made: list[str]) -> None:
        settings = self._settings
        name = f"{settings.release}-{role}-tls"
        service = f"{settings.release}-{role}"
        hosts = (
            "localhost",
            "127.0.0.1",
            service,
            f"{service}.{settings.namespace}",
            f"{service}.{settings.namespace}.svc",
            f"{service}.{settings.namespace}.svc.cluster.local",
            *(host_of(each.endpoint) for each in settings.exposed if each.service == role),
        )
        identity = "user" if role == "operator" else role
        uri = identity_uri(settings.federation, settings.organization, identity, f"{settings.organization}-{role}")

        def make() -> dict[str, bytes]:
            certificate, key = issue(authority, uri, _now(), hosts)
            return {CERTIFICATE_FILE: certificate, KEY_FILE: key}

        found = await self._secret(name, settings.namespace, make, made)
        if needs_renewal(found[CERTIFICATE_FILE], _now()) or not names_hosts(found[CERTIFICATE_FILE], hosts):
            await self._api.write_secret(settings.namespace, name, make(), self._labels, new=False)
            made.append(f"Secret {name}: renewed")

    async def _secret(self, name: str, namespace: str, make: MakeData, made: list[str]) -> dict[str, bytes]:
        try:
            return await self._api.secret(namespace, name)
        except NotFound:
            pass
        data = make()
        try:
            await self._api.write_secret(namespace, name, data, self._labels, new=True)
        except Conflict:  # another run was quicker
            return await self._api.secret(namespace, name)
        made.append(f"Secret {namespace}/{name}")
        return data


def host_of(endpoint: str) -> str:
    """Of host:port, an IPv6 address without its brackets."""
    return endpoint.rpartition(":")[0].strip("[]")


def _storage_keys() -> dict[str, bytes]:
    """Who may use the blob store in the cluster, as S3's clients and servers read it."""
    return {
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10).encode(),
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30).encode(),
    }


def _rest_token() -> dict[str, bytes]:
    """What writing over REST needs, the same for all replicas of the gateway."""
    return {TOKEN_FILE: secrets.token_urlsafe(32).encode()}


async def _work(settings: IdentitySettings) -> None:
    async with KubernetesApi() as api:
        made = await Identity(api, settings).ensure()
    sys.stdout.write("\n".join(made) + "\n" if made else "everything is there, and no certificate is near its end\n")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


if __name__ == "__main__":
    sys.exit(run_once("talkoo_operator.identity", __doc__, IdentitySettings, _work))
