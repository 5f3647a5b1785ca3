"""What is asked before a TrainingTask is submitted: whether its namespace may spend so much, and whose turn it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from talkoo.client_async import AsyncClient
from talkoo_core.amounts import parse_tlk
from talkoo_core.errors import InsufficientFunds, InvalidInput, TalkooError
from talkoo_operator.api import TASKS, KubernetesApi
from talkoo_operator.queue import Key
from talkoo_operator.quota import LIMIT_ANNOTATION, LOWER_PRIORITY, Waiting, check_quota

Object = dict[str, Any]


class Limits:
    """One for all TrainingTasks."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api
        self._waiting = Waiting()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.default_utlk: int | None = None
        """Of namespaces that say nothing themselves: `spec.spendLimit` of the Federation. None: no limit."""

    def waits(self, key: Key, priority: int) -> None:
        """It waits for tokens or quota."""
        self._waiting.add(key, priority)

    def settled(self, key: Key) -> None:
        """It waits for them no more."""
        self._waiting.remove(key)

    @contextlib.asynccontextmanager
    async def turn(self, key: Key, task: Object, client: AsyncClient) -> AsyncIterator[None]:
        """Held while a task is submitted. Raises InsufficientFunds, with a code that says what it waits for."""
        first = self._waiting.before(key, int(task["spec"].get("priority", 0)))
        if first is not None:
            raise InsufficientFunds(
                f"{first[1]} has a higher priority and waits for tokens or quota: it goes first", code=LOWER_PRIORITY
            )
        limit_utlk = await self._limit(key[0])
        if limit_utlk is None:
            yield
            return
        async with self._turns[key[0]]:  # two at once would both fit into what only one may have
            await self._check(key, task, client, limit_utlk)
            yield

    async def _limit(self, namespace: str) -> int | None:
        text = (await self._api.annotations(namespace)).get(LIMIT_ANNOTATION)
        if text is None:
            return self.default_utlk
        try:
            return parse_tlk(text)
        except TalkooError as error:
            raise InvalidInput(f"the annotation {LIMIT_ANNOTATION} of the namespace {namespace}: {error}") from None

    async def _check(self, key: Key, task: Object, client: AsyncClient, limit_utlk: int) -> None:
        """What is on its way counts as well: after a crash its transactions are sent without being asked again."""
        held = [(t.escrow_utlk, t.spent_utlk) for t in await client.tasks() if t.owner == client.address]
        for other in await self._api.objects(TASKS, (key[0],)):
            if other["metadata"]["name"] != key[1] and other.get("status", {}).get("submission", {}).get("transaction"):
                held.append((parse_tlk(str(other["spec"]["budget"])), 0))
        check_quota(key[0], limit_utlk, held, parse_tlk(str(task["spec"]["budget"])))
