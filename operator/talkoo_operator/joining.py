"""What an organization that has joined does with its first tokens: its services' fees, its stake, its namespaces.

Each once. A service or a namespace gets its tokens when the ledger knows no account of it, the stake when nothing is
bonded; that it was bonded stands in the Federation's status, so that what its owner unbonds later is not bonded again.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

from talkoo_api.ledger.v1 import state_pb2, tx_pb2

from talkoo.client_async import AsyncClient
from talkoo_core.amounts import format_tlk, parse_tlk
from talkoo_core.errors import Conflict, NotFound, TalkooError
from talkoo_operator.api import API_SERVER_AWAY, KubernetesApi
from talkoo_operator.identity import ACCOUNT_FILE, ACCOUNT_SECRET
from talkoo_operator.settings import OperatorSettings
from talkoo_runtime.keys import address_of, key_of_document
from talkoo_runtime.transactions import transaction_hash

Object = dict[str, Any]
Note = Callable[[Object], Awaitable[None]]
"""Writes where it stands into the Federation's status, at once."""


class Joining:
    """`owner` pays. May be done again at any time, also after a crash in its middle."""

    def __init__(self, api: KubernetesApi, owner: AsyncClient, settings: OperatorSettings) -> None:
        self._api = api
        self._owner = owner
        self._settings = settings
        self._funded: set[str] = set()
        """Accounts that this process need not look for again."""

    async def go_on(self, own: state_pb2.Organization | None, before: Object, note: Note) -> Object:
        """Where it stands now, as the status says it. What the ledger refuses is said there and tried again."""
        made = dict(before)
        if own is None or own.left_height:
            return {**made, "message": f"{self._settings.organization} is no member yet; a member has to admit it"}

        async def noted(joining: Object) -> None:
            await note(joining)
            made.clear()
            made.update(joining)

        try:
            for address in (own.scheduler, own.validator):
                await self._fund(address, self._settings.service_balance, "fees of a service")
            if not made.get("bonded"):
                made |= await self._bond(own, before, noted)
            for account in self._settings.accounts:
                secret = await self._api.secret(account.namespace, ACCOUNT_SECRET)
                where = f"the Secret {account.namespace}/{ACCOUNT_SECRET}"
                key = key_of_document(secret.get(ACCOUNT_FILE, b"").decode(), where)
                await self._fund(address_of(key), account.balance, f"account of {account.namespace}")
        except TalkooError as error:
            if error.code == API_SERVER_AWAY:
                raise
            return {**made, "message": error.message}
        return {**made, "message": f"{made['bonded']} are bonded; they are voting power from the next epoch on"}

    async def _fund(self, address: str, amount: str, memo: str) -> None:
        if address in self._funded:
            return
        try:
            await self._owner.ledger.account(address)
        except NotFound:
            await self._owner.transfer(address, parse_tlk(amount), memo)
        self._funded.add(address)

    async def _bond(self, own: state_pb2.Organization, before: Object, note: Note) -> Object:
        """The signed transaction lies in the status before it is on its way."""
        amount_utlk = parse_tlk(self._settings.stake)
        if own.stake_utlk and not before.get("transaction"):
            return {"bonded": format_tlk(own.stake_utlk)}
        try:
            if before.get("transaction"):
                result = await self._owner.ledger.resume(base64.b64decode(before["transaction"]))
            else:

                async def record(signed: bytes) -> None:
                    encoded = base64.b64encode(signed).decode()
                    await note({**before, "transaction": encoded, "hash": transaction_hash(signed).hex()})

                bond = tx_pb2.Bond(subject=own.name, amount_utlk=amount_utlk)
                result = await self._owner.send(bond, record=record)
        except Conflict as error:
            if error.code != "superseded":
                raise
            await note({**before, "transaction": None, "hash": None})
            raise  # said in the message; with the next look it is signed anew
        return {"transaction": None, "hash": result.hash.hex(), "bonded": format_tlk(amount_utlk)}
