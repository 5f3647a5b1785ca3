"""Wire the agent together and serve."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from talkoo_api.agent.v1 import agent_pb2, agent_pb2_grpc
from talkoo_api.ledger.v1 import service_pb2_grpc
from talkoo_api.scheduler.v1 import scheduler_pb2_grpc

from talkoo_agent.devices import find_device
from talkoo_agent.gpu_metrics import watch_gpus
from talkoo_agent.interfaces import interface_environment
from talkoo_agent.lending import cards_for, lent_cards
from talkoo_agent.metrics import watch_shards
from talkoo_agent.node import Node
from talkoo_agent.nvml import GpuWatch
from talkoo_agent.offering import offer_forever, withdraw
from talkoo_agent.reporting import report_forever
from talkoo_agent.servicer import AgentServicer
from talkoo_agent.serving import Serving
from talkoo_agent.settings import HONEST, AgentSettings, check_settings
from talkoo_agent.spare import Spare
from talkoo_agent.speed import machine_folder
from talkoo_agent.visible import VISIBLE
from talkoo_agent.work import Work
from talkoo_runtime.blobs import open_blob_store
from talkoo_runtime.grpc_client import files_seen, raise_from_rpc, service_channel
from talkoo_runtime.grpc_server import STOP_GRACE_S, make_server, start_server
from talkoo_runtime.keys import address_of, load_key
from talkoo_runtime.ledger_client import LedgerClient
from talkoo_runtime.supervision import Background

log = logging.getLogger(__name__)
MAX_PEER_CHANNELS = 32
NO_GPU = (
    "this node has no GPU that NVML sees and CUDA_VISIBLE_DEVICES leaves to it, "
    "and lending the processor is not allowed (allow_cpu)"
)


class Peers:
    """Channels to other nodes' agents, the least recently used closed beyond `MAX_PEER_CHANNELS`."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._channels: OrderedDict[tuple[str, tuple[int, ...]], grpc.aio.Channel] = OrderedDict()

    async def rendezvous(
        self, endpoint: str, request: agent_pb2.RendezvousRequest, timeout_s: float
    ) -> agent_pb2.RendezvousResponse:
        stub = await self._stub(endpoint)
        try:
            response: agent_pb2.RendezvousResponse = await stub.Rendezvous(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise_from_rpc(error)
        return response

    async def relay(self, endpoint: str) -> Any:
        return (await self._stub(endpoint)).Relay()

    async def _stub(self, endpoint: str) -> Any:
        key = endpoint, files_seen(self._settings)
        if key not in self._channels:
            self._channels[key] = service_channel(self._settings, endpoint)
            if len(self._channels) > MAX_PEER_CHANNELS:
                _, oldest = self._channels.popitem(last=False)
                await oldest.close()
        self._channels.move_to_end(key)
        return agent_pb2_grpc.AgentStub(self._channels[key])  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))


async def serve(settings: AgentSettings, background: Background) -> Callable[[], Awaitable[None]]:
    """Start everything; the coroutine function that comes back stops it."""
    check_settings(settings)
    key = load_key(Path(settings.account_key))
    watch = GpuWatch()
    await asyncio.to_thread(watch.open)
    lent = lent_cards(watch.gpus, os.environ.get(VISIBLE))
    cards = cards_for(lent, settings.slots)
    device = await asyncio.to_thread(find_device, lent, settings.power_mw, settings.memory_bytes)
    # Shards of an earlier run have ended with it; what they committed is in the blob store.
    await asyncio.to_thread(shutil.rmtree, Path(settings.state_dir) / "tasks", True)
    ledger_channel = service_channel(settings, settings.ledger)
    scheduler_channel = service_channel(settings, settings.scheduler)
    node = Node(
        id=address_of(key),
        key=key,
        settings=settings,
        device=device,
        cards=cards,
        ledger=LedgerClient(service_pb2_grpc.LedgerStub(ledger_channel), key),  # type: ignore[no-untyped-call]
        scheduler=scheduler_pb2_grpc.SchedulerStub(scheduler_channel),  # type: ignore[no-untyped-call]
        blobs=open_blob_store(settings.blobs, settings),
        spare=Spare(
            interface_environment(settings.listen.rpartition(":")[0]),
            settings.warm_trainer,
            machine_folder(Path(settings.state_dir)) / "spare.lock",
        ),
        watch=watch,
    )
    if settings.forge_from_segment != HONEST:
        log.warning("this node forges its steps from segment %d on: a demonstration", settings.forge_from_segment)
    peers, serving = Peers(settings), Serving(node)
    work = Work(node, peers)
    watch_shards(work.rates, lambda: cards.slots)
    watch_gpus(lambda: node.watch.latest, lambda: node.pods)
    server = make_server()
    agent_pb2_grpc.add_AgentServicer_to_server(AgentServicer(node, work, serving), server)  # type: ignore[no-untyped-call]
    await start_server(server, settings)
    background.start_restarting("report", lambda: report_forever(node, work))
    offering: asyncio.Task[None] | None = None
    if device.kind == "cpu" and not settings.allow_cpu:
        node.standing.set("off", "NoGPU", NO_GPU)
        log.warning(NO_GPU)
    else:
        work.start(background)
        offering = background.start_restarting("offer", lambda: offer_forever(node, work, serving))
        background.start("spare trainer", node.spare.keep())

    async def stop() -> None:
        if offering is not None:  # or it would offer again what becomes free below
            offering.cancel()
            await asyncio.gather(offering, return_exceptions=True)
            await withdraw(node)
        await asyncio.gather(work.stop(), serving.stop(), node.spare.stop())
        await server.stop(STOP_GRACE_S)
        await asyncio.to_thread(node.watch.close)
        await asyncio.gather(peers.close(), node.blobs.close(), ledger_channel.close(), scheduler_channel.close())

    return stop
