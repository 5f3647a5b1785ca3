"""`python -m talkoo_operator.trial`: what `helm test` runs: a release is used as its users use it, over mutual TLS.

Each line of the output is one thing that was seen to work; the first that does not ends the trial with a sentence.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
from talkoo_api.gateway.v1 import gateway_pb2_grpc
from talkoo_api.ledger.v1 import service_pb2

from talkoo.client_async import AsyncClient
from talkoo.profile import Profile
from talkoo_core.errors import Corrupt, Failed, Unavailable
from talkoo_core.signing import PrivateKey
from talkoo_operator.once import run_once

PATIENCE_S, POLL_S, CALL_TIMEOUT_S = 60.0, 0.5, 10.0
PATHS = ("/healthz", "/readyz", "/v1/status", "/openapi.json")
MAX_BODY_BYTES = 4 << 20


class TrialSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the gateway is, and as whom it is called."""

    federation: str
    organization: str
    gateway: str
    """host:port of gRPC."""
    http: str
    """host:port of REST."""
    certificate: str
    private_key: str
    trust_bundle: str
    """PEM files; the certificate's role is `user`."""


async def trial(settings: TrialSettings) -> AsyncIterator[str]:
    """What works, one after the other. Raises the error of what does not."""
    profile = Profile.direct(
        endpoint=settings.gateway,
        certificate=settings.certificate,
        private_key=settings.private_key,
        trust_bundle=settings.trust_bundle,
        account_key="",
        organization=settings.organization,
    )
    # A key without an account: the trial reads, it spends nothing.
    async with AsyncClient(profile=profile, key=PrivateKey.from_seed(secrets.token_bytes(32))) as client:
        first = await _patient(client)
        yield f"the gateway answers over gRPC: {first.chain_id} at block {first.height}"
        names = [each.name for each in await client.organizations()]
        if settings.organization not in names:
            raise Failed(f"{settings.organization} is no member on the ledger; the members are {', '.join(names)}")
        yield f"{settings.organization} is one of {len(names)} members"
        yield f"the ledger grows: block {await _grown(client, first.height)} after {first.height}"
    await _refuses_strangers(settings)
    yield "a caller without a certificate is turned away"
    for path in PATHS:
        told = await asyncio.to_thread(_get, settings, path)
        if path == "/v1/status" and told["chain_id"] != first.chain_id:
            raise Corrupt(f"REST speaks of the chain {told['chain_id']}, gRPC of {first.chain_id}", code="two_chains")
        yield f"REST answers {path}"


async def _patient(client: AsyncClient) -> service_pb2.Status:
    """A release that was installed a moment ago may still start."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            return await client.status()
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(POLL_S)


async def _grown(client: AsyncClient, height: int) -> int:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while (now := (await client.status()).height) <= height:
        if asyncio.get_running_loop().time() > deadline:
            raise Unavailable(
                f"the ledger stands at block {height} for {PATIENCE_S:.0f} s: too little voting power is connected",
                code="ledger_stands",
            )
        await asyncio.sleep(POLL_S)
    return int(now)


async def _refuses_strangers(settings: TrialSettings) -> None:
    """Raises Failed when somebody who shows no certificate is answered."""
    trusted = await asyncio.to_thread(Path(settings.trust_bundle).read_bytes)
    async with grpc.aio.secure_channel(settings.gateway, grpc.ssl_channel_credentials(trusted)) as channel:
        stub: Any = gateway_pb2_grpc.GatewayStub(channel)  # type: ignore[no-untyped-call]  # generated
        try:
            await stub.GetStatus(service_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return
    raise Failed("the gateway answers a caller that shows no certificate", code="open_gateway")


def _get(settings: TrialSettings, path: str) -> Any:
    """The body as JSON. Raises Unavailable (no answer) or Failed (another status than 200)."""
    host, _, port = settings.http.rpartition(":")
    context = ssl.create_default_context(cafile=settings.trust_bundle)
    connection = http.client.HTTPSConnection(host, int(port), timeout=CALL_TIMEOUT_S, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(MAX_BODY_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"https://{settings.http}{path} does not answer: {error}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise Failed(f"https://{settings.http}{path} answers {answer.status}: {body[:300].decode(errors='replace')}")
    return json.loads(body)


async def _work(settings: TrialSettings) -> None:
    async for seen in trial(settings):
        sys.stdout.write(f"{seen}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run_once("talkoo_operator.trial", __doc__, TrialSettings, _work))
