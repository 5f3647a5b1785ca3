"""The scheduler's gRPC service, and how its parts are put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from talkoo_api.ledger.v1 import service_pb2_grpc as ledger_grpc
from talkoo_api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from talkoo_core.errors import Exhausted, InvalidInput, PermissionDenied
from talkoo_runtime.clock import SystemClock
from talkoo_runtime.etcd import EtcdStore
from talkoo_runtime.grpc_client import service_channel
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.identity import Identity, identity_of, require
from talkoo_runtime.keys import load_key
from talkoo_runtime.ledger_client import LedgerClient
from talkoo_runtime.supervision import Background
from talkoo_scheduler.keys import Keys, StoredReport
from talkoo_scheduler.leader import Desk, Leader, explain, read_offers
from talkoo_scheduler.metrics import HeardAgents, look_for_leader
from talkoo_scheduler.settings import SchedulerSettings
from talkoo_scheduler.sharing import Sharing
from talkoo_scheduler.view import ENDED

log = logging.getLogger(__name__)
MAX_REPORT_CHARACTERS = 1_024
MAX_KIND_CHARACTERS = 64
MAX_OFFER_BYTES = 16 * 1024
MAX_SHARED_OFFERS = 1_024
MAX_SHARED_BYTES = 1024 * 1024
"""Of all offers that one organization shares."""
MAX_KNOWN_NODES = 4_096
READERS = {"agent", "gateway", "supervisor", "scheduler"}
STOP_GRACE_S = 1.0


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServicer):
    """Takes the offers and reports of the own organization's agents, and offers from other clusters; answers."""

    def __init__(self, settings: SchedulerSettings, ledger: LedgerClient, store: EtcdStore, keys: Keys) -> None:
        self._settings = settings
        self._ledger = ledger
        self._store = store
        self._keys = keys
        self._agents = HeardAgents(settings.offer_ttl_s)
        self._known: dict[str, tuple[str, str]] = {}
        """Node id → organization and name on the ledger, of those that have spoken to us or were spoken for."""

    async def _own_node(self, context: Any, node_id: str) -> Identity:
        """The caller, who must be the agent of exactly this node: the ledger says which name the node goes by."""
        identity = identity_of(context)
        require(identity, roles={"agent"}, organization=self._settings.organization)
        if not await self._is_node(node_id, identity.organization, identity.name):
            organization, name = self._known[node_id]
            raise PermissionDenied(
                f"{identity} cannot speak for {name} of {organization}; it speaks for its own node", code="wrong_node"
            )
        return identity

    async def _is_node(self, node_id: str, organization: str, name: str) -> bool:
        """Whether the ledger knows this node as theirs and by this name. Raises NotFound where it does not know it."""
        if self._known.get(node_id) != (organization, name):
            node = await self._ledger.node(node_id)
            if len(self._known) >= MAX_KNOWN_NODES:
                self._known.clear()
            self._known[node_id] = (node.organization, node.name)
        return self._known[node_id] == (organization, name)

    def _reader(self, context: Any) -> None:
        require(identity_of(context), roles=READERS, organization=self._settings.organization)

    async def Offer(self, request: Any, context: Any) -> scheduler_pb2.OfferResponse:
        """An offer lives for its TTL after the agent's last word."""
        offer = request.offer
        identity = await self._own_node(context, offer.node_id)
        if (offer.organization, offer.name) != (identity.organization, identity.name):
            raise InvalidInput(
                f"the offer names {offer.name!r} of {offer.organization!r}, but {identity} sent it", code="bad_offer"
            )
        _check_size(offer)
        await self._store.put_for(
            self._keys.offer(offer.node_id), offer.SerializeToString(), self._settings.offer_ttl_s
        )
        self._agents.offered(offer.node_id)
        return scheduler_pb2.OfferResponse(ttl_s=self._settings.offer_ttl_s)

    async def ShareOffers(self, request: Any, context: Any) -> scheduler_pb2.OfferResponse:
        """All that another organization's nodes offer in a cluster of their own. What it shared before is replaced."""
        identity = identity_of(context)
        require(identity, roles={"scheduler"})
        if identity.organization == self._settings.organization:
            raise InvalidInput(
                f"{identity} shares offers with its own organization; take this scheduler out of share_with",
                code="own_offers",
            )
        offers = {offer.node_id: offer for offer in request.offers}
        _check_shared(request, identity, offers)
        for offer in offers.values():
            if not await self._is_node(offer.node_id, identity.organization, offer.name):
                raise PermissionDenied(
                    f"the ledger knows the node {offer.node_id} not as {offer.name} of {identity.organization}; an "
                    "organization shares offers of its own nodes",
                    code="wrong_node",
                )
        prefix = self._keys.shared_by(identity.organization)
        values = {prefix + node_id: offer.SerializeToString() for node_id, offer in offers.items()}
        await self._store.replace_for(prefix, values, self._settings.offer_ttl_s)
        return scheduler_pb2.OfferResponse(ttl_s=self._settings.offer_ttl_s)

    async def Withdraw(self, request: Any, context: Any) -> scheduler_pb2.WithdrawResponse:
        await self._own_node(context, request.node_id)
        await self._store.delete(self._keys.offer(request.node_id))
        self._agents.withdrew(request.node_id)
        return scheduler_pb2.WithdrawResponse()

    async def ListOffers(self, request: Any, context: Any) -> scheduler_pb2.ListOffersResponse:
        self._reader(context)
        offers = await read_offers(self._store, self._keys)
        return scheduler_pb2.ListOffersResponse(
            offers=sorted(offers.values(), key=lambda o: o.name), leader=await self._store.leader(self._keys.leader)
        )

    async def Explain(self, request: Any, context: Any) -> scheduler_pb2.Explanation:
        self._reader(context)
        return await explain(self._ledger, self._store, self._keys, request.task_id, self._settings.share_with)

    async def ReportShard(self, request: Any, context: Any) -> scheduler_pb2.ReportShardResponse:
        identity = await self._own_node(context, request.node_id)
        if (await self._ledger.task(request.task_id)).phase in ENDED:
            return scheduler_pb2.ReportShardResponse()  # too late to matter to anybody
        report = StoredReport(
            attempt=request.attempt,
            node=identity.name,
            kind=request.kind[:MAX_KIND_CHARACTERS],
            message=request.message[:MAX_REPORT_CHARACTERS],
        )
        await self._store.put(self._keys.report(request.task_id), msgspec.json.encode(report))
        log.info("%s reports of %s: %s: %s", report.node, request.task_id, report.kind, report.message)
        return scheduler_pb2.ReportShardResponse()


def _check_shared(request: Any, identity: Identity, offers: Mapping[str, scheduler_pb2.Offer]) -> None:
    """`offers`: those of the request by node. Raises Exhausted for too many, InvalidInput (code `bad_offer`)."""
    if len(request.offers) > MAX_SHARED_OFFERS or request.ByteSize() > MAX_SHARED_BYTES:
        raise Exhausted(
            f"an organization shares at most {MAX_SHARED_OFFERS} offers and {MAX_SHARED_BYTES} bytes, these are "
            f"{len(request.offers)} and {request.ByteSize()}",
            code="too_many_offers",
        )
    if len(offers) < len(request.offers):
        raise InvalidInput("a node is offered twice in one message; send one offer for each", code="bad_offer")
    for offer in offers.values():
        if offer.organization != identity.organization:
            raise InvalidInput(
                f"the offer of {offer.name!r} names {offer.organization!r}, but {identity} sent it", code="bad_offer"
            )
        _check_size(offer)


def _check_size(offer: scheduler_pb2.Offer) -> None:
    if offer.ByteSize() > MAX_OFFER_BYTES:
        raise Exhausted(f"an offer has at most {MAX_OFFER_BYTES} bytes, this one has {offer.ByteSize()}")


async def serve(settings: SchedulerSettings, background: Background) -> Callable[[], Awaitable[None]]:
    """Connect to the ledger and etcd, serve, and stand for election."""
    channel = service_channel(settings, settings.ledger)
    stub = ledger_grpc.LedgerStub(channel)  # type: ignore[no-untyped-call]  # generated
    ledger = LedgerClient(stub, load_key(Path(settings.account_key)))
    store = EtcdStore(
        list(settings.etcd), Path(settings.certificate), Path(settings.private_key), Path(settings.trust_bundle)
    )
    await store.open()
    keys = Keys(settings.federation)
    desk = Desk(ledger)
    leader = Leader(ledger, store, keys, desk, settings.organization, SystemClock())

    async def stand() -> None:
        """Campaign, lead, and again. Trouble with etcd or the ledger ends a term, never the service."""
        await ledger.status()  # who cannot read the ledger does not stand
        term = await store.campaign(keys.leader, settings.organization, settings.offer_ttl_s)
        try:
            await leader.lead(term.lost)
        finally:
            await asyncio.shield(term.resign())

    async def stand_again() -> None:
        while True:
            await stand()

    server = make_server()
    servicer = SchedulerServicer(settings, ledger, store, keys)
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # generated
    await start_server(server, settings)
    background.start_restarting("following the ledger", desk.follow)
    background.start_restarting("election", stand_again)
    Sharing(settings, store, keys).start(background)
    background.start("looking for the leader", look_for_leader(store, keys.leader))

    async def stop() -> None:
        await server.stop(STOP_GRACE_S)
        await background.stop()
        await store.close()
        await channel.close()

    return stop
