"""A namespace is an account: its key lies in the namespace's own Secret, and nobody spends what is another's."""

from __future__ import annotations

from collections import OrderedDict

from talkoo_api.ledger.v1 import state_pb2

from talkoo.client_async import AsyncClient
from talkoo.profile import Profile
from talkoo_core.errors import NotFound
from talkoo_core.signing import PrivateKey
from talkoo_operator.api import KubernetesApi
from talkoo_operator.identity import ACCOUNT_FILE, ACCOUNT_SECRET
from talkoo_operator.settings import OperatorSettings
from talkoo_operator.shared import Shared
from talkoo_runtime.keys import address_of, key_of_document

MAX_CLIENTS = 256
"""Connections kept; the least recently used are closed beyond."""


class Accounts:
    """Clients of the gateway, one for each namespace and key: it owns the key's nonces."""

    def __init__(self, api: KubernetesApi, settings: OperatorSettings) -> None:
        self._api = api
        self._settings = settings
        self._shared = Shared()
        self._clients: OrderedDict[tuple[str, str], AsyncClient] = OrderedDict()
        """By namespace and address."""
        self.reader = self.client(None)
        """For all that is only read. It would sign with the owner's key, and is never asked to."""

    def client(self, key: PrivateKey | None) -> AsyncClient:
        """A new client; without a key it only reads."""
        settings = self._settings
        profile = Profile.direct(
            endpoint=settings.gateway,
            certificate=settings.certificate,
            private_key=settings.private_key,
            trust_bundle=settings.trust_bundle,
            account_key=settings.owner_key,
            organization=settings.organization,
        )
        return AsyncClient(profile=profile, key=key)

    async def of(self, namespace: str) -> AsyncClient:
        """With the key that the namespace's Secret has now. Raises NotFound where it has none."""
        key = await self._key(namespace)
        place = (namespace, address_of(key))
        known = self._clients.get(place)
        if known is None:
            known = self._clients[place] = self.client(key)
            if len(self._clients) > MAX_CLIENTS:
                _, oldest = self._clients.popitem(last=False)
                await oldest.close()
        self._clients.move_to_end(place)
        return known

    async def account(self, client: AsyncClient) -> state_pb2.Account:
        """The client's own; an empty one where the ledger has none."""

        async def read() -> state_pb2.Account:
            try:
                return await client.account()
            except NotFound:
                return state_pb2.Account(address=client.address)

        return await self._shared.read(client.address, read)

    async def owner_of(self, namespace: str, address: str) -> AsyncClient:
        """Whoever paid for a task: its Secret may be gone before it, with its namespace, or hold another key by now."""
        return self._clients.get((namespace, address)) or await self.of(namespace)

    async def close(self) -> None:
        for client in (self.reader, *self._clients.values()):
            await client.close()

    async def _key(self, namespace: str) -> PrivateKey:
        try:
            secret = await self._api.secret(namespace, ACCOUNT_SECRET)
        except NotFound:
            raise NotFound(
                f"the namespace {namespace} has no account: it lacks the Secret {ACCOUNT_SECRET} with the entry "
                f"{ACCOUNT_FILE}; ask your administrator, or put your own key file there",
                code="no_account",
            ) from None
        return key_of_document(secret.get(ACCOUNT_FILE, b"").decode(), f"the Secret {namespace}/{ACCOUNT_SECRET}")
