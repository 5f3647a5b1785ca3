"""What an organization's parts need before they start: keys, certificates, and for a new federation its genesis.

`python -m talkoo_operator.identity --settings FILE` makes what is not there and renews certificates near their end;
nothing else that exists is changed. A Job of each revision runs it, and a CronJob every day. Certificates that
cert-manager issues are left to it.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from talkoo.federation.beginning import ORGANIZATION_KEYS, account_entry, genesis_document, organization_entry
from talkoo_core.amounts import parse_tlk
from talkoo_core.errors import Conflict, NotFound, TalkooError, Unavailable
from talkoo_core.signing import PrivateKey
from talkoo_operator.api import KubernetesApi, called
from talkoo_operator.issued import issued_authority, with_authority
from talkoo_runtime.keys import key_document, key_of_document
from talkoo_runtime.pki import (
    CERTIFICATE_FILE,
    KEY_FILE,
    Authority,
    create_authority,
    identity_uri,
    issue,
    needs_renewal,
    trust_bundle,
)
from talkoo_runtime.settings import load_settings

SERVED = ("ledger", "scheduler", "validator", "gateway", "etcd")
"""Roles with a server, whose certificates name their Services; the operator is a user of the gateway."""
ACCOUNT_SECRET = "talkoo-account"  # noqa: S105  # the name of a Secret, not one
ACCOUNT_FILE = "account.key"
GENESIS_FILE, TRUST_FILE = "genesis.json", "trust.pem"
TOKEN_FILE = "rest.token"  # noqa: S105  # a file's name
CERT_MANAGER: Final = "cert-manager"
ISSUED_TIMEOUT_S, POLL_S = 120.0, 1.0
"""How long cert-manager may take for the organization's authority."""


MakeData = Callable[[], dict[str, bytes]]


class NewAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A namespace that gets an account with tokens in the genesis of a new federation."""

    namespace: str
    balance: str
    """Such as `500 TLK`."""


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
        await self._federation(authority, keys, accounts, made)
        await self._trusted(authority, made)
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
        organization = organization_entry(settings.organization, keys, parse_tlk(settings.stake))
        entries = [account_entry(keys["owner"], parse_tlk(settings.balance), settings.organization)]
        for role in ("scheduler", "validator"):
            balance = parse_tlk(settings.service_balance)
            entries.append(account_entry(keys[role], balance, f"{settings.organization}-{role}"))
        for namespace, (account, key) in accounts.items():
            entries.append(account_entry(key, parse_tlk(account.balance), namespace))
        genesis = genesis_document(f"{settings.federation}-1", time.time_ns(), [organization], entries)
        data = {GENESIS_FILE: json.dumps(genesis, indent=2) + "\n", TRUST_FILE: trust_bundle([authority]).decode()}
        try:
            await self._api.create_config_map(settings.namespace, name, data, self._labels)
        except Conflict:  # another run was quicker; its genesis is the one
            return
        made.append(f"ConfigMap {name}: the genesis of {settings.federation}")

    async def _trusted(self, authority: Authority, made: list[str]) -> None:
        """A renewed authority takes its own place in the trust bundle; other members' stay as they are."""
        settings = self._settings
        name = f"{settings.release}-federation"
        bundle = (await self._api.config_map(settings.namespace, name))[TRUST_FILE]
        wanted = with_authority(bundle, authority)
        if wanted == bundle:
            return
        change = {"data": {TRUST_FILE: wanted.decode()}}
        await called(self._api.core.patch_namespaced_config_map(name, settings.namespace, change))
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
        )
        identity = "user" if role == "operator" else role
        uri = identity_uri(settings.federation, settings.organization, identity, f"{settings.organization}-{role}")

        def make() -> dict[str, bytes]:
            certificate, key = issue(authority, uri, _now(), hosts)
            return {CERTIFICATE_FILE: certificate, KEY_FILE: key}

        found = await self._secret(name, settings.namespace, make, made)
        if needs_renewal(found[CERTIFICATE_FILE], _now()):
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


def _storage_keys() -> dict[str, bytes]:
    """Who may use the blob store in the cluster, as S3's clients and servers read it."""
    return {
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10).encode(),
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30).encode(),
    }


def _rest_token() -> dict[str, bytes]:
    """What writing over REST needs, the same for all replicas of the gateway."""
    return {TOKEN_FILE: secrets.token_urlsafe(32).encode()}


async def _main(path: Path) -> None:
    settings = load_settings(IdentitySettings, path, os.environ)
    async with KubernetesApi() as api:
        made = await Identity(api, settings).ensure()
    sys.stdout.write("\n".join(made) + "\n" if made else "everything is there, and no certificate is near its end\n")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m talkoo_operator.identity", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="TOML file; docs/kubernetes.md explains it")
    try:
        asyncio.run(_main(parser.parse_args().settings))
    except TalkooError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
