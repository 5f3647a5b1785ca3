"""What `helm test` runs, against a real ledger and a real gateway: it says what works, and what does not."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from talkoo_operator.trial import TrialSettings, trial

from talkoo_core.errors import Failed, Unavailable
from talkoo_runtime.pki import CERTIFICATE_FILE, KEY_FILE
from talkoo_sim.ledger_processes import FEDERATION, Ledgers
from talkoo_sim.ports import free_ports


@pytest.fixture
async def ledgers(tmp_path: Path) -> AsyncIterator[Ledgers]:
    made = Ledgers(tmp_path)
    made.start()
    yield made
    await made.close()


@pytest.fixture
async def settings(ledgers: Ledgers, tmp_path: Path) -> AsyncIterator[TrialSettings]:
    """A gateway before the first organization's ledger; it has neither scheduler nor validator, and needs none here."""
    name = ledgers.names[0]
    grpc_port, http_port, nobody = free_ports(3)
    own, user = ledgers.certificate(name, "gateway"), ledgers.certificate(name, "user")
    trust = str(tmp_path / "trust.pem")
    values = {
        "federation": FEDERATION,
        "organization": name,
        "name": f"{name}-gateway",
        "listen": f"127.0.0.1:{grpc_port}",
        "http_listen": f"127.0.0.1:{http_port}",
        "state_dir": str(tmp_path / "gateway"),
        "certificate": str(own / CERTIFICATE_FILE),
        "private_key": str(own / KEY_FILE),
        "trust_bundle": trust,
        "ledger": f"127.0.0.1:{ledgers.ports[name]}",
        "scheduler": f"127.0.0.1:{nobody}",
        "validator": f"127.0.0.1:{nobody}",
        "blobs": f"file://{tmp_path}/blobs",
    }
    path = tmp_path / "gateway.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "talkoo_gateway", "--settings", str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.readline(), 60)).startswith(b"ready gateway")
    yield TrialSettings(
        federation=FEDERATION,
        organization=name,
        gateway=f"127.0.0.1:{grpc_port}",
        http=f"127.0.0.1:{http_port}",
        certificate=str(user / CERTIFICATE_FILE),
        private_key=str(user / KEY_FILE),
        trust_bundle=trust,
    )
    process.terminate()
    await process.wait()


async def test_a_release_that_works_passes(settings: TrialSettings) -> None:
    said = [line async for line in trial(settings)]
    assert any(line.startswith("the ledger grows: block") for line in said)
    assert "a caller without a certificate is turned away" in said
    assert [line for line in said if line.startswith("REST")] == [
        f"REST answers {path}" for path in ("/healthz", "/readyz", "/v1/status", "/openapi.json")
    ]


async def test_a_ledger_that_stands_fails_it(
    settings: TrialSettings, ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledgers.reach(2)
    ledgers.stop(*ledgers.names[1:])
    client = ledgers.client(settings.organization)

    async def stands() -> bool:
        """The last votes are counted."""
        before = (await client.status()).height
        await asyncio.sleep(0.5)
        return (await client.status()).height == before

    await ledgers.eventually(stands, "the ledger stands")
    monkeypatch.setattr("talkoo_operator.trial.PATIENCE_S", 5.0)
    with pytest.raises(Unavailable, match=r"the ledger stands at block .* too little voting power"):
        async for _ in trial(settings):
            pass


async def test_an_organization_that_is_no_member_fails_it(settings: TrialSettings) -> None:
    stranger = msgspec.structs.replace(settings, organization="nowhere")
    with pytest.raises(Failed, match="nowhere is no member on the ledger"):
        async for _ in trial(stranger):
            pass
