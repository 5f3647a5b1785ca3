"""What the own organization's nodes offer, told to schedulers of other clusters, each of which has its own etcd.

They are sent all of it, whenever it changed and three times in each of its lifetimes there. So a node that left is
forgotten at once, and a cluster that cannot be reached any more by itself.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from talkoo_api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from talkoo_core.errors import TalkooError
from talkoo_runtime.etcd import EtcdStore
from talkoo_runtime.grpc_client import drop_closed_channels, raise_from_rpc, service_channel
from talkoo_runtime.supervision import Background
from talkoo_scheduler.keys import Keys
from talkoo_scheduler.leader import read_own_offers
from talkoo_scheduler.metrics import SHARED
from talkoo_scheduler.settings import SchedulerSettings

log = logging.getLogger(__name__)
SHARES_PER_TTL = 3
SHARE_TIMEOUT_S = 5.0
LEAST_PAUSE_S = 0.2
"""Changes that come closer together are told together."""
REDIAL_FIRST_S = 0.5
REDIAL_MAX_S = 5.0


class Sharing:
    """One conversation with each scheduler of `share_with`."""

    def __init__(self, settings: SchedulerSettings, store: EtcdStore, keys: Keys) -> None:
        self._settings = settings
        self._store = store
        self._keys = keys
        self._changed = {endpoint: asyncio.Event() for endpoint in settings.share_with}

    def start(self, background: Background) -> None:
        if self._changed:
            background.start_restarting("watching own offers", self._watch)
        for endpoint in self._changed:
            background.start(f"sharing offers with {endpoint}", self._share_forever(endpoint))

    async def _watch(self) -> None:
        async for _ in self._store.watch(self._keys.offers):
            for changed in self._changed.values():
                changed.set()

    async def _share_forever(self, endpoint: str) -> None:
        """A lost link is dialled again after growing pauses, with the certificates of that moment."""
        trouble: str | None = ""
        pause_s = REDIAL_FIRST_S
        while True:
            try:
                async with service_channel(self._settings, endpoint) as channel:
                    stub = scheduler_pb2_grpc.SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
                    while True:
                        sent, again_s = await self._send(endpoint, stub)
                        if trouble is not None:
                            log.info("offers are shared with %s", endpoint)
                        trouble, pause_s = None, REDIAL_FIRST_S
                        SHARED.set(1, scheduler=endpoint)
                        await self._until_due(endpoint, sent, again_s)
            except TalkooError as error:
                SHARED.set(0, scheduler=endpoint)
                if trouble != error.message:
                    log.warning("offers cannot be shared with %s: %s", endpoint, error.message)
                trouble = error.message
            drop_closed_channels()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, REDIAL_MAX_S)

    async def _send(self, endpoint: str, stub: Any) -> tuple[list[scheduler_pb2.Offer], float]:
        """What was sent, and the loop's time at which it is to be sent again."""
        began = asyncio.get_running_loop().time()
        self._changed[endpoint].clear()
        offers = await self._own_offers()
        try:
            answer = await stub.ShareOffers(scheduler_pb2.ShareOffersRequest(offers=offers), timeout=SHARE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise_from_rpc(error)
        return offers, began + max(answer.ttl_s / SHARES_PER_TTL, LEAST_PAUSE_S)

    async def _until_due(self, endpoint: str, sent: list[scheduler_pb2.Offer], again_s: float) -> None:
        """Until that time, or until the offers are others. Heart-beats that say the same are no change."""
        now = asyncio.get_running_loop().time
        while (left_s := again_s - now()) > 0:
            try:
                await asyncio.wait_for(self._changed[endpoint].wait(), left_s)
            except TimeoutError:
                return
            await asyncio.sleep(LEAST_PAUSE_S)
            self._changed[endpoint].clear()
            if await self._own_offers() != sent:
                return

    async def _own_offers(self) -> list[scheduler_pb2.Offer]:
        return await read_own_offers(self._store, self._keys, self._settings.organization)
