"""Proposals: what this organization moves in the federation, signed once with its owner's key, and what came of it."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

from talkoo_api.ledger.v1 import service_pb2, state_pb2

from talkoo.client_async import AsyncClient
from talkoo.membership import Membership
from talkoo_core.errors import Conflict, TalkooError, Unavailable
from talkoo_operator.api import API_SERVER_AWAY, PROPOSALS, KubernetesApi
from talkoo_operator.motion import ENDED, Count, counted, decided, not_ours, of_result, refused_motion, waiting_motion
from talkoo_operator.newcomers import Newcomers
from talkoo_operator.objects import AT_ONCE_S, Objects, Outrun
from talkoo_operator.queue import Key
from talkoo_operator.settings import OperatorSettings
from talkoo_runtime.keys import key_of_document
from talkoo_runtime.transactions import transaction_hash

RETRY_S, REVIEW_S = 5.0, 10.0
ADMIT = "AdmitMember"
NEXT_KEY_SECRET, NEXT_KEY_FILE = "next-consensus", "consensus.key"
"""`<release>-next-consensus` holds the key that a RotateKey brings in."""
Object = dict[str, Any]
Record = Callable[[bytes], Awaitable[None]]


class ProposalController:
    """`owner` signs: so only Proposals in the release's own namespace count, where its administrators write."""

    def __init__(
        self, api: KubernetesApi, owner: AsyncClient, settings: OperatorSettings, now: Callable[[], float]
    ) -> None:
        self._api = api
        self._owner = owner
        self._settings = settings
        self._membership = Membership(owner)
        self._objects = Objects(api, PROPOSALS, "Proposal", now)
        self._newcomers = Newcomers(owner, self._objects)

    async def work(self, key: Key) -> float | None:
        proposal = await self._objects.read(key)
        if proposal is None or "deletionTimestamp" in proposal["metadata"]:
            return None
        status = proposal.get("status", {})
        if status.get("phase") in ENDED:
            return None
        try:
            if key[0] != self._settings.namespace:
                await self._objects.write(proposal, not_ours(self._settings.namespace, *self._objects.when(proposal)))
                return None
            if not status.get("height"):
                await self._bring(proposal)
            return await self._count(proposal)
        except Outrun:
            return AT_ONCE_S

    async def _bring(self, proposal: Object) -> None:
        """To the ledger, once: the signed transaction lies in the object before it is on its way."""
        status, when = proposal.get("status", {}), self._objects.when(proposal)
        recorded = status.get("submission", {}).get("transaction")
        try:
            if recorded:
                result = await self._owner.ledger.resume(base64.b64decode(recorded))
            elif proposal["spec"]["action"] == ADMIT and await self._newcomers.bring(proposal):
                words = f"{proposal['spec']['organization']} is a member already"
                made = decided(proposal.get("status", {}), "Carried", "Admitted", words, *when)
                await self._objects.write(proposal, made)
                return
            else:
                result = await self._send(proposal["spec"], self._recorder(proposal))
        except Conflict as error:
            if error.code != "superseded":
                await self._refuse(proposal, error)
                return
            await self._objects.write(proposal, {**status, "submission": None})
            raise Outrun from None
        except Unavailable as error:
            if error.code != API_SERVER_AWAY:
                await self._objects.write(proposal, waiting_motion(proposal.get("status", {}), error.message, *when))
            raise
        except TalkooError as error:
            await self._refuse(proposal, error)
            return
        await self._objects.write(
            proposal, of_result(proposal.get("status", {}), result.hash.hex(), result.height, *when)
        )

    def _recorder(self, proposal: Object) -> Record:
        async def record(signed: bytes) -> None:
            submission = {
                "transaction": base64.b64encode(signed).decode(),
                "hash": transaction_hash(signed).hex(),
            }
            await self._objects.write(proposal, {**proposal.get("status", {}), "submission": submission})

        return record

    async def _send(self, spec: Object, record: Record) -> service_pb2.TxResult:
        own = self._settings.organization
        match spec["action"]:
            case "ApproveMember" | "AdmitMember":
                return await self._membership.approve(spec["organization"], record)
            case "RotateKey":
                name = f"{self._settings.release}-{NEXT_KEY_SECRET}"
                secret = await self._api.secret(self._settings.namespace, name)
                key = key_of_document(secret.get(NEXT_KEY_FILE, b"").decode(), f"the Secret {name}")
                return await self._membership.rotate_key(own, key, record)
            case _:
                return await self._membership.leave(own, record)

    async def _refuse(self, proposal: Object, error: TalkooError) -> None:
        made = refused_motion(proposal.get("status", {}), error.message, *self._objects.when(proposal))
        await self._objects.write(proposal, made)
        await self._objects.event(proposal, "Warning", made["reason"], made["message"])

    async def _count(self, proposal: Object) -> float | None:
        """What has come of it; an approval is open until enough others approve, or the application expires."""
        status, spec, when = proposal["status"], proposal["spec"], self._objects.when(proposal)
        if status.get("phase") in ENDED:
            return None
        if spec["action"] not in ("ApproveMember", ADMIT):
            made = decided(status, "Carried", "Done", f"final in block {status['height']}", *when)
        else:
            made = counted(status, await self._votes(spec["organization"]), *when)
        await self._objects.write(proposal, made)
        if made["phase"] in ENDED:
            await self._objects.event(proposal, "Normal", made["reason"], made["message"])
            return None
        return REVIEW_S

    async def _votes(self, name: str) -> Count:
        organizations = await self._owner.organizations()
        applications: list[state_pb2.MembershipApplication] = await self._membership.applications()
        application = next((each for each in applications if each.name == name), None)
        approvals = sorted(application.approvals) if application is not None else []
        powers = {each.name: int(each.power) for each in organizations}
        return Count(
            name=name,
            approvals=tuple(approvals),
            power_for=sum(powers.get(each, 0) for each in approvals),
            power_total=sum(powers.values()),
            open=application is not None and await self._is_open(application),
            member=any(each.name == name and not each.left_height for each in organizations),
        )

    async def _is_open(self, application: state_pb2.MembershipApplication) -> bool:
        params = await self._owner.params()
        return bool((await self._owner.status()).height <= application.height + params.unbonding_blocks)
