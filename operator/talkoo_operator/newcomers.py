"""What precedes our consent to a newcomer that we admit: the grant, and its own application, each brought in once."""

from __future__ import annotations

import base64
from typing import Any

from talkoo_api.ledger.v1 import tx_pb2

from talkoo.client_async import AsyncClient
from talkoo_core.amounts import parse_tlk
from talkoo_core.errors import Conflict, InvalidInput, NotFound
from talkoo_operator.invitation import Application, read_application
from talkoo_operator.objects import Objects, Outrun
from talkoo_runtime.transactions import transaction_hash

Object = dict[str, Any]


class Newcomers:
    """`owner` pays. All that it does may be done again at any time, also after a crash in its middle."""

    def __init__(self, owner: AsyncClient, objects: Objects) -> None:
        self._owner = owner
        self._objects = objects

    async def bring(self, proposal: Object) -> bool:
        """Whether the newcomer is a member already; else its application is final when this returns.

        Raises InvalidInput (codes `bad_application`, `bad_authority`, `other_chain`) before anything is paid, the
        ledger's own errors, and Outrun.
        """
        spec = proposal["spec"]
        application = read_application(spec["application"], spec["organization"])
        chain_id = (await self._owner.status()).chain_id
        if application.chain_id != chain_id:
            raise InvalidInput(
                f"{spec['organization']} has applied to {application.chain_id}, and this is {chain_id}; invite it here",
                code="other_chain",
            )
        known = next((each for each in await self._owner.organizations() if each.name == spec["organization"]), None)
        if known is not None and not known.left_height:
            if known.owner != application.owner:
                raise Conflict(f"there is an organization {known.name!r} already, of another owner", code="name_taken")
            return True
        if spec.get("grant"):
            await self._grant(proposal, application)
        await self._apply(application)
        return False

    async def _grant(self, proposal: Object, application: Application) -> None:
        """The signed transfer lies in the object before it is on its way."""
        before = proposal.get("status", {}).get("grant") or {}
        if before.get("height"):
            return
        try:
            if before.get("transaction"):
                result = await self._owner.ledger.resume(base64.b64decode(before["transaction"]))
            else:
                transfer = tx_pb2.Transfer(to=application.owner, amount_utlk=parse_tlk(proposal["spec"]["grant"]))

                async def record(signed: bytes) -> None:
                    made = {"transaction": base64.b64encode(signed).decode(), "hash": transaction_hash(signed).hex()}
                    await self._note(proposal, made)

                result = await self._owner.send(transfer, record=record)
        except Conflict as error:
            if error.code != "superseded":
                raise
            await self._note(proposal, None)
            raise Outrun from None
        await self._note(proposal, {"transaction": None, "hash": result.hash.hex(), "height": result.height})

    async def _note(self, proposal: Object, grant: Object | None) -> None:
        await self._objects.write(proposal, {**proposal.get("status", {}), "grant": grant})

    async def _apply(self, application: Application) -> None:
        """The newcomer has signed; whoever sends it, and however often, it counts once."""
        try:
            await self._owner.ledger.resume(application.signed)
        except Conflict as error:
            if error.code != "superseded":
                raise
            raise InvalidInput(
                f"the newcomer's owner has sent something else since it applied; it applies anew with "
                f"`federation.applicationNonce: {await self._nonce(application.owner)}`",
                code="bad_application",
            ) from None

    async def _nonce(self, owner: str) -> int:
        try:
            return int((await self._owner.account(owner)).nonce)
        except NotFound:
            return 0
