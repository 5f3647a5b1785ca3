"""`python -m talkoo_operator.join`: what a node's agent needs, before it starts: keys, a certificate, an endorsement.

The keys are made on the node and never leave it. The GPUNode object carries the request and the answer; its
organization's operator signs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import msgspec

from talkoo_core.errors import NotFound, Unavailable
from talkoo_operator.api import GROUP, VERSION, KubernetesApi
from talkoo_operator.once import run_once
from talkoo_runtime.disk import write_atomic
from talkoo_runtime.keys import address_of, create_key, load_key
from talkoo_runtime.pki import CERTIFICATE_FILE, KEY_FILE, SECRET_MODE, certificate_request, fits_request

JOIN_TIMEOUT_S = 240.0
POLL_S = 1.0
ACCOUNT_FILE = "account.key"


class JoinSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the node's own things lie, and who it is."""

    node: str
    """The Kubernetes node's name."""
    pod_ip: str
    port: int
    host_ip: str = ""
    host_port: int = 0
    """Where the node itself passes calls on to the pod, for callers outside of the cluster; 0: nowhere."""
    state_dir: str
    """On the node's disk: the account's key outlives the pod."""
    run_dir: str
    """The agent's settings and certificate, anew for each pod."""
    base_settings: str
    """TOML file with what is the same on all nodes."""
    stake: str = "20 TLK"


async def join(settings: JoinSettings, api: KubernetesApi) -> None:
    """Ask and wait for the answer. Raises Unavailable when none comes in time."""
    state, run = Path(settings.state_dir), Path(settings.run_dir)
    account = state / ACCOUNT_FILE
    key = load_key(account) if account.exists() else create_key(account)
    private, request = certificate_request(settings.node)
    await api.ensure_node({"apiVersion": f"{GROUP}/{VERSION}", "kind": "GPUNode", "metadata": {"name": settings.node}})
    await api.patch_node_status(
        settings.node,
        {
            "address": address_of(key),
            "certificateRequest": request.decode(),
            "podIP": settings.pod_ip,
            "hostIP": settings.host_ip or None,
            "stake": settings.stake,
        },
    )
    certificate, endorsement = await _answer(settings, api, request)
    write_atomic(run / KEY_FILE, private, mode=SECRET_MODE)
    write_atomic(run / CERTIFICATE_FILE, certificate)
    own = {
        "name": settings.node,
        "listen": f"{settings.pod_ip}:{settings.port}",
        "state_dir": str(state),
        "account_key": str(account),
        "certificate": str(run / CERTIFICATE_FILE),
        "private_key": str(run / KEY_FILE),
        "endorsement": endorsement,
        "node_folder": str(run),
    }
    if settings.host_port:
        host = f"[{settings.host_ip}]" if ":" in settings.host_ip else settings.host_ip
        own["advertise"] = f"{host}:{settings.host_port}"
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in own.items()]
    base = await asyncio.to_thread(Path(settings.base_settings).read_text, encoding="utf-8")
    write_atomic(run / "settings.toml", ("".join(lines) + base).encode())


async def _answer(settings: JoinSettings, api: KubernetesApi, request: bytes) -> tuple[bytes, str]:
    deadline = asyncio.get_running_loop().time() + JOIN_TIMEOUT_S
    reason = "the operator has not answered"
    hosts = [settings.pod_ip, settings.host_ip] if settings.host_ip else [settings.pod_ip]
    while asyncio.get_running_loop().time() < deadline:
        try:
            status = (await api.node(settings.node)).get("status", {})
            certificate = status.get("certificate", "").encode()
            if certificate and fits_request(certificate, request, *hosts) and status.get("endorsement"):
                return certificate, str(status["endorsement"])
            told = [c for c in status.get("conditions", ()) if c["type"] == "Joined" and c["status"] == "False"]
            reason = told[0]["message"] if told else reason
        except (NotFound, Unavailable) as error:
            reason = error.message
        await asyncio.sleep(POLL_S)
    raise Unavailable(f"{settings.node} was not let in within {JOIN_TIMEOUT_S:.0f} s: {reason}", code="not_joined")


async def _work(settings: JoinSettings) -> None:
    async with KubernetesApi() as api:
        await join(settings, api)
    sys.stdout.write(f"{settings.node} may join\n")


if __name__ == "__main__":
    sys.exit(run_once("talkoo_operator.join", __doc__, JoinSettings, _work))
