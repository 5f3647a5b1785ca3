"""Starting and stopping the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from talkoo_api.gateway.v1 import gateway_pb2_grpc

from talkoo_gateway.blob_transfers import BlobTransfers
from talkoo_gateway.desk import Desk
from talkoo_gateway.https_server import HttpsServer
from talkoo_gateway.metrics import watch_streams
from talkoo_gateway.servicer import GatewayServicer
from talkoo_gateway.settings import GatewaySettings
from talkoo_gateway.tokens import ensure_token
from talkoo_gateway.upstreams import Upstreams
from talkoo_runtime.blobs import open_blob_store
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.supervision import Background

if TYPE_CHECKING:
    from starlette.types import ASGIApp

STOP_GRACE_S = 1.0
"""Followers never end by themselves: they are cut off after so long and resume with another gateway, or this one."""


async def serve(settings: GatewaySettings, background: Background) -> Callable[[], Awaitable[None]]:
    """Start gRPC and HTTPS; returns what stops them. Starts without its ledger: `/readyz` tells when that is there."""
    async with AsyncExitStack() as started:
        upstreams = Upstreams(settings)
        started.push_async_callback(upstreams.close)
        store = open_blob_store(settings.blobs, settings)
        started.push_async_callback(store.close)
        desk = Desk(upstreams, BlobTransfers(store, Path(settings.state_dir)))
        watch_streams(lambda: desk.streams)
        server = make_server()
        gateway_pb2_grpc.add_GatewayServicer_to_server(GatewayServicer(desk), server)  # type: ignore[no-untyped-call]
        started.push_async_callback(server.stop, STOP_GRACE_S)
        await start_server(server, settings)
        token = ensure_token(Path(settings.state_dir))

        def rest() -> ASGIApp:
            from talkoo_gateway.rest import make_app

            return make_app(desk, token)

        https = HttpsServer(rest, settings)
        started.push_async_callback(https.stop)
        await https.start(background)
        return started.pop_all().aclose
