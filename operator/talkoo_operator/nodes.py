"""GPUNodes: a node that asks is certified, endorsed and funded by its organization, and then registers itself."""

from __future__ import annotations

import datetime
import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from talkoo.client_async import AsyncClient
from talkoo_core.amounts import format_tlk, parse_tlk
from talkoo_core.errors import InvalidInput, NotFound, TalkooError
from talkoo_core.ids import is_address
from talkoo_core.signing import PrivateKey
from talkoo_operator.api import KubernetesApi
from talkoo_operator.heartbeats import Heartbeats
from talkoo_operator.node_api import NodeApi
from talkoo_operator.node_status import judged
from talkoo_operator.queue import Key
from talkoo_operator.settings import OperatorSettings
from talkoo_operator.status import timestamp, with_condition
from talkoo_runtime.pki import Authority, certify, fits_request, identity_uri, needs_renewal

log = logging.getLogger(__name__)
ENDORSEMENT_DOMAIN = b"talkoo/node/v1\n"
RETRY_S = 5.0
Object = dict[str, Any]


class NodeController:
    """`owner` is a client with the organization owner's key."""

    def __init__(self, api: KubernetesApi, owner: AsyncClient, settings: OperatorSettings) -> None:
        self._api = api
        self._owner = owner
        self._settings = settings
        self._heartbeats = Heartbeats(NodeApi(api, settings.namespace))
        self._endorsed_before: dict[str, str] = {}
        """Address by node: who was endorsed and funded by this process is not asked about at every heart-beat."""
        self._authority = Authority(
            settings.organization,
            Path(settings.authority_certificate).read_bytes(),
            Path(settings.authority_key).read_bytes(),
        )

    async def listen(self, wake: Callable[[Key], None]) -> None:
        """For ever: wake a node that fell silent or is heard again."""
        await self._heartbeats.run(lambda name: wake(("", name)))

    async def work(self, key: Key) -> float | None:
        try:
            node = await self._api.node(key[1])
        except NotFound:
            self._endorsed_before.pop(key[1], None)
            return None
        status = node.get("status", {})
        if not status.get("certificateRequest") or not status.get("address"):
            return None  # its agent has not spoken yet
        try:
            change = self._certified(node) | await self._endorsed(node)
            joined, reason, message = True, "Joined", f"certified, endorsed and funded by {self._settings.organization}"
            again_s = None
        except TalkooError as error:
            change, joined, reason, message = {}, False, "NotJoined", error.message
            again_s = RETRY_S
        await self._write(node, change, joined, reason, message)
        return again_s

    def _certified(self, node: Object) -> Object:
        """A certificate for the key in the request, and for the addresses that the node's pod has now."""
        status, name = node["status"], node["metadata"]["name"]
        request = status["certificateRequest"].encode()
        hosts = [str(status.get("podIP", "")), *([str(status["hostIP"])] if status.get("hostIP") else [])]
        known = status.get("certificate", "").encode()
        now = datetime.datetime.now(datetime.UTC)
        if known and fits_request(known, request, *hosts) and not needs_renewal(known, now):
            return {}
        for host in hosts:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise InvalidInput(f"the node's pod has no address: {host!r}", code="bad_address") from None
        uri = identity_uri(self._settings.federation, self._settings.organization, "agent", name)
        return {"certificate": certify(self._authority, request, uri, now, (*hosts, "localhost")).decode()}

    async def _endorsed(self, node: Object) -> Object:
        """The owner's signature, and tokens for the stake unless the node has registered before."""
        address, name = str(node["status"]["address"]), str(node["metadata"]["name"])
        if self._endorsed_before.get(name) == address and node["status"].get("endorsement"):
            return {}
        if not is_address(address):
            raise InvalidInput(f"{address!r} is no account address", code="bad_address")
        key: PrivateKey = self._owner.key
        chain_id = (await self._owner.status()).chain_id
        endorsement = key.sign(ENDORSEMENT_DOMAIN + f"{chain_id}\n{address}".encode()).hex()
        await self._fund(address, parse_tlk(str(node["status"].get("stake", "0"))))
        self._endorsed_before[name] = address
        return {} if node["status"].get("endorsement") == endorsement else {"endorsement": endorsement}

    async def _fund(self, address: str, stake_utlk: int) -> None:
        try:
            await self._owner.ledger.node(address)
            return  # its stake is bonded; what it earns is its own
        except NotFound:
            pass
        try:
            held = (await self._owner.account(address)).balance_utlk
        except NotFound:
            held = 0
        missing = stake_utlk + parse_tlk(self._settings.node_balance) - held
        if missing > 0:
            await self._owner.transfer(address, missing, "stake and fees of a node")
            log.info("funded %s with %s", address, format_tlk(missing))

    async def _write(self, node: Object, change: Object, joined: bool, reason: str, message: str) -> None:
        status, meta = node["status"], node["metadata"]
        now = timestamp(datetime.datetime.now(datetime.UTC).timestamp())
        made = with_condition(
            status, "Joined", holds=joined, reason=reason, message=message, generation=meta["generation"], now=now
        )
        change["heartbeatSeconds"] = self._heartbeats.pace_s()
        change |= judged({**node, "status": made}, self._heartbeats.heard(meta["name"]), now)
        if any(status.get(field) != value for field, value in change.items()):
            await self._api.patch_node_status(meta["name"], change)
