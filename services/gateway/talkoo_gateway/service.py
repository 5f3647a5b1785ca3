"""Starting and stopping the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from talkoo_api.gateway.v1 import gateway_pb2_grpc

from talkoo_gateway.blob_transfers import BlobTransfers
from talkoo_gateway.desk import Desk
from talkoo_gateway.https_server import HttpsServer
from talkoo_gateway.rest import make_app
from talkoo_gateway.servicer import GatewayServicer
from talkoo_gateway.settings import GatewaySettings
from talkoo_gateway.tokens import ensure_token
from talkoo_gateway.upstreams import Upstreams
from talkoo_runtime.blobs import open_blob_store
from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.supervision import Background

STOP_GRACE_S = 1.0
"""Followers never end by themselves: they are cut off after so long and resume with another gateway, or this one."""


async def serve(settings: GatewaySettings, background: Background) -> Callable[[], Awaitable[None]]:
    """Start gRPC and HTTPS; returns what stops them. Starts without its ledger: `/readyz` tells when that is there."""
    upstreams = Upstreams(settings)
    desk = Desk(upstreams, BlobTransfers(open_blob_store(settings.blobs), Path(settings.state_dir)))
    server = make_server()
    gateway_pb2_grpc.add_GatewayServicer_to_server(GatewayServicer(desk), server)  # type: ignore[no-untyped-call]
    https = HttpsServer(make_app(desk, ensure_token(Path(settings.state_dir))), settings)
    await start_server(server, settings)
    await https.start(background)

    async def stop() -> None:
        await https.stop()
        await server.stop(STOP_GRACE_S)
        await upstreams.close()

    return stop
