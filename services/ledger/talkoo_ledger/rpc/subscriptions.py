"""Who wants to be told what. Clients are told from the store, each at its own pace up to a bound."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from talkoo_core.errors import Exhausted, NotFound
from talkoo_ledger.event_query import EventQuery, parse_query
from talkoo_ledger.rpc.calls import Id, encode, failure, success
from talkoo_ledger.rpc.chain import ChainReader
from talkoo_ledger.rpc.documents import Document
from talkoo_ledger.rpc.errors import SERVER_ERROR, RpcError
from talkoo_ledger.rpc.happenings import Happening, happenings_of

log = logging.getLogger(__name__)

MAX_CLIENTS = 100
MAX_PER_CLIENT = 5
"""Both as CometBFT's defaults."""
MAX_BEHIND = 50
"""Blocks that are told late when many come at once; a node that catches up skips the others."""


class Client(Protocol):
    """One websocket."""

    def has_room(self) -> bool:
        """Whether it keeps up: an event more may wait for it."""

    def tell(self, message: bytes) -> None: ...


@dataclass(slots=True)
class _Subscription:
    id: Id
    text: str
    query: EventQuery


class Subscriptions:
    """`run` tells each new block to those who asked."""

    def __init__(self, reader: ChainReader) -> None:
        self._reader = reader
        self._clients: dict[Client, list[_Subscription]] = {}

    def subscribe(self, client: Client, id_: Id, query: str) -> Document:
        """Raises Exhausted, InvalidInput (`bad_query`)."""
        mine = self._clients.get(client, [])
        if not mine and len(self._clients) >= MAX_CLIENTS:
            raise Exhausted(f"max_subscription_clients {MAX_CLIENTS} reached", code="too_many_subscribers")
        if len(mine) >= MAX_PER_CLIENT:
            raise Exhausted(f"max_subscriptions_per_client {MAX_PER_CLIENT} reached", code="too_many_subscriptions")
        parsed = parse_query(query)
        if any(each.query == parsed for each in mine):
            raise Exhausted("already subscribed", code="already_subscribed")
        self._clients[client] = [*mine, _Subscription(id_, query, parsed)]
        return {}

    def unsubscribe(self, client: Client, query: str) -> Document:
        """Raises NotFound, InvalidInput (`bad_query`)."""
        parsed, mine = parse_query(query), self._clients.get(client, [])
        left = [each for each in mine if each.query != parsed]
        if len(left) == len(mine):
            raise NotFound("subscription not found", code="no_subscription")
        self._keep(client, left)
        return {}

    def unsubscribe_all(self, client: Client) -> Document:
        """Raises NotFound."""
        if self._clients.pop(client, None) is None:
            raise NotFound("subscription not found", code="no_subscription")
        return {}

    def forget(self, client: Client) -> None:
        self._clients.pop(client, None)

    async def run(self) -> None:
        """Forever."""
        told = self._reader.last_height
        while True:
            await self._reader.executor.decided()
            last = self._reader.last_height
            for height in range(max(told + 1, last - MAX_BEHIND + 1), last + 1):
                if self._clients:
                    await self._tell_safely(height)
            told = last

    async def _tell_safely(self, height: int) -> None:
        """What goes wrong here costs subscribers an event, not the member its node."""
        try:
            await self._tell(height)
        except Exception:
            log.exception("block %d could not be told to subscribers", height)

    async def _tell(self, height: int) -> None:
        read = self._reader.block(height)
        if read is None:
            return  # pruned, or skipped by a snapshot
        stored = self._reader.executor.store.block(height)
        for happening in happenings_of(stored, read, self._reader.validator_updates(height)):
            self._tell_each(happening)
            await asyncio.sleep(0)  # a large block must not hold up consensus

    def _tell_each(self, happening: Happening) -> None:
        encoded: tuple[msgspec.Raw, msgspec.Raw] | None = None
        for client, subscriptions in list(self._clients.items()):
            for subscription in subscriptions:
                if not subscription.query.matches(happening.values):
                    continue
                if not client.has_room():
                    self._drop(client, subscription)
                    continue
                if encoded is None:
                    encoded = msgspec.Raw(encode(happening.data)), msgspec.Raw(encode(happening.values))
                result: dict[str, Any] = {"query": subscription.text, "data": encoded[0], "events": encoded[1]}
                client.tell(encode(success(subscription.id, result)))

    def _drop(self, client: Client, subscription: _Subscription) -> None:
        """Bounded by MAX_PER_CLIENT more messages that wait for the client."""
        self._keep(client, [each for each in self._clients[client] if each is not subscription])
        error = RpcError(SERVER_ERROR, "subscription was canceled (reason: client is not pulling messages fast enough)")
        client.tell(encode(failure(subscription.id, error)))

    def _keep(self, client: Client, left: list[_Subscription]) -> None:
        if left:
            self._clients[client] = left
        else:
            self._clients.pop(client, None)
