"""Whom the gateway calls: agents of any organization that the trust bundle names now."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from talkoo_api.agent.v1 import agent_pb2
from talkoo_gateway.settings import GatewaySettings
from talkoo_gateway.upstreams import Upstreams

from talkoo_runtime.grpc_server import make_server, start_server
from talkoo_runtime.pki import Authority, ensure_authority, ensure_certificate, identity_uri, trust_bundle
from talkoo_sim.ports import free_port


def files(authority: Authority, folder: Path, role: str, *trusted: Authority) -> dict[str, str]:
    ensure_certificate(authority, folder, identity_uri("town", authority.organization, role, role))
    (folder / "trust.pem").write_bytes(trust_bundle([*trusted]))
    return {
        "federation": "town",
        "organization": authority.organization,
        "name": role,
        "listen": f"127.0.0.1:{free_port()}",
        "state_dir": str(folder),
        "certificate": str(folder / "certificate.pem"),
        "private_key": str(folder / "private-key.pem"),
        "trust_bundle": str(folder / "trust.pem"),
    }


async def answer_of(upstreams: Upstreams, endpoint: str) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (await upstreams.agent(endpoint)).Describe(agent_pb2.DescribeRequest(), timeout=5)
    return caught.value.code()


async def test_agents_of_a_newcomer_are_called_as_soon_as_it_is_trusted(tmp_path: Path) -> None:
    north, east = (ensure_authority(tmp_path / name / "ca", name) for name in ("north", "east"))
    others = dict.fromkeys(("ledger", "scheduler", "validator", "http_listen"), "127.0.0.1:1")
    agent = GatewaySettings(**files(east, tmp_path / "agent", "agent", north, east), **others, blobs="")
    gateway = GatewaySettings(**files(north, tmp_path / "gateway", "gateway", north), **others, blobs="")
    server = make_server()
    await start_server(server, agent)
    upstreams = Upstreams(gateway)
    try:
        assert await answer_of(upstreams, agent.listen) == grpc.StatusCode.UNAVAILABLE
        first = await upstreams.agent(agent.listen)
        assert await upstreams.agent(agent.listen) is first
        (tmp_path / "gateway" / "trust.pem").write_bytes(trust_bundle([north, east]))
        assert await answer_of(upstreams, agent.listen) == grpc.StatusCode.UNIMPLEMENTED, "it is there, and empty"
    finally:
        await upstreams.close()
        await server.stop(None)
