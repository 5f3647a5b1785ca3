"""What is asked before a TrainingTask is submitted: whether its namespace may spend so much, and whose turn it is."""

from __future__ import annotations

import base64
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from talkoo.client_async import AsyncClient
from talkoo_core.amounts import parse_tlk
from talkoo_core.errors import InsufficientFunds, InvalidInput, TalkooError
from talkoo_operator.api import TASKS, KubernetesApi
from talkoo_operator.known import Known
from talkoo_operator.queue import Key
from talkoo_operator.quota import LIMIT_ANNOTATION, LOWER_PRIORITY, Held, Reservation, Reserved, Waiting, check_quota
from talkoo_operator.shared import Shared

Object = dict[str, Any]


class Limits:
    """One for all TrainingTasks. Any number of a namespace may be on their way at once: each reserves its budget."""

    def __init__(self, api: KubernetesApi, known: Known, shared: Shared) -> None:
        self._api = api
        self._known = known
        self._shared = shared
        self._waiting = Waiting()
        self._reserved: defaultdict[str, Reserved] = defaultdict(Reserved)
        self.default_utlk: int | None = None
        """Of namespaces that say nothing themselves: `spec.spendLimit` of the Federation. None: no limit."""

    def waits(self, key: Key, priority: int) -> None:
        """It waits for tokens or quota."""
        self._waiting.add(key, priority)

    def settled(self, key: Key) -> None:
        """It waits for them no more."""
        self._waiting.remove(key)

    @contextlib.asynccontextmanager
    async def turn(self, key: Key, task: Object, client: AsyncClient) -> AsyncIterator[Reservation]:
        """Held while a task is submitted. Raises InsufficientFunds, with a code that says what it waits for."""
        budget_utlk = parse_tlk(str(task["spec"]["budget"]))
        limit_utlk = await self._limit(key[0])
        held = None
        if limit_utlk is not None:
            held = await self._shared.read(("held", key[0], client.address), lambda: self._held(key[0], client))
        # From here to the reservation nothing is waited for: two at once would both fit into what only one may have.
        first = self._waiting.before(key, int(task["spec"].get("priority", 0)))
        if first is not None:
            raise InsufficientFunds(
                f"{first[1]} has a higher priority and waits for tokens or quota: it goes first", code=LOWER_PRIORITY
            )
        reserved = self._reserved[key[0]]
        if limit_utlk is not None and held is not None:
            check_quota(key[0], limit_utlk, reserved.with_held(held, besides=key[1]), budget_utlk)
        with reserved.reserve(budget_utlk) as reservation:
            yield reservation

    async def _limit(self, namespace: str) -> int | None:
        annotations = await self._shared.read(("annotations", namespace), lambda: self._api.annotations(namespace))
        text = annotations.get(LIMIT_ANNOTATION)
        if text is None:
            return self.default_utlk
        try:
            return parse_tlk(text)
        except TalkooError as error:
            raise InvalidInput(f"the annotation {LIMIT_ANNOTATION} of the namespace {namespace}: {error}") from None

    async def _held(self, namespace: str, client: AsyncClient) -> Held:
        """Objects first, then the ledger: what is recorded in an object and becomes final in between is in both.

        What is on its way counts as well: after a crash its transactions are sent without being asked again.
        """
        began = self._reserved[namespace].begin()
        there = self._known.of(namespace) if self._known.whole else await self._api.objects(TASKS, (namespace,))
        recorded = {}
        for each in there:
            transaction = each.get("status", {}).get("submission", {}).get("transaction")
            if transaction:
                budget_utlk = parse_tlk(str(each["spec"]["budget"]))
                recorded[str(each["metadata"]["name"])] = base64.b64decode(transaction), budget_utlk
        on_ledger = {t.id: (t.escrow_utlk, t.spent_utlk) for t in await client.tasks() if t.owner == client.address}
        return Held(began, recorded, on_ledger)
