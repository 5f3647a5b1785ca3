"""The gateway as its own process: says that it is ready, stops when told, refuses wrong settings in one line."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from talkoo.client import Client
from talkoo_sim.ports import free_port
from talkoo_sim.scraping import scrape


def toml(values: dict[str, Any]) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


@pytest.fixture
def settings(house: Any, tmp_path: Path) -> dict[str, Any]:
    return dict(
        house.settings(
            "gateway",
            "second",
            http_listen=f"127.0.0.1:{free_port()}",
            ledger=house.ledger_address,
            scheduler=house.scheduler_address,
            validator=house.validator_address,
            blobs=f"file://{tmp_path}/blobs",
        )
    )


async def start(tmp_path: Path, settings: dict[str, Any]) -> asyncio.subprocess.Process:
    path = tmp_path / "settings.toml"
    path.write_text(toml(settings))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "talkoo_gateway",
        "--settings",
        str(path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_it_says_ready_serves_and_stops_when_told(house: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    process = await start(tmp_path, settings)
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 30)
    assert line.decode() == f"ready gateway second {settings['listen']}\n"
    house.grpc_address = settings["listen"]
    profile = house.profile()

    def use() -> str:
        with Client(profile=profile) as client:
            assert client.transfer("bob", "0.5 TLK").code == 0
            assert client.account("bob").balance_utlk == 5_500_000
            blocks = client.block_events(1)
            assert next(blocks).height == 1
            return client.status().chain_id  # with a stream still open

    assert await asyncio.to_thread(use) == "chain-test"
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_a_private_cluster_s_gateway_keeps_blobs_behind_another_member_s(
    house: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    process = await start(tmp_path, {**settings, "blobs": f"gateway://{house.grpc_address}"})
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.readline(), 30)).startswith(b"ready")
    house.grpc_address = settings["listen"]
    profile = house.profile()

    def use() -> str:
        with Client(profile=profile) as client:
            sha256 = client.put_blob(b"kept elsewhere")
            assert client.blob(sha256) == b"kept elsewhere"
            return sha256

    sha256 = await asyncio.to_thread(use)
    assert (house.folder / "blobs" / sha256[:2] / sha256[2:4] / sha256).read_bytes() == b"kept elsewhere"
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_its_metrics_count_requests_by_route_and_calls_by_method(
    house: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    port = free_port()
    process = await start(tmp_path, {**settings, "metrics_listen": f"127.0.0.1:{port}"})
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.readline(), 30)).startswith(b"ready")
    trusting = ssl.create_default_context(cafile=str(house.folder / "trust.pem"))
    async with httpx.AsyncClient(verify=trusting, base_url=f"https://{settings['http_listen']}", timeout=30) as http:
        statuses = [(await http.get(f"/v1/accounts/nobody-{number}")).status_code for number in range(3)]
        assert (await http.get("/healthz")).status_code == 200
        for number in range(5):
            assert (await http.get(f"/made/up/{number}")).status_code == 404
        assert (await http.request("BREW", "/healthz")).status_code == 405
    house.grpc_address = settings["listen"]
    profile = house.profile()

    def height() -> int:
        with Client(profile=profile) as client:
            return client.status().height

    await asyncio.to_thread(height)
    scraped = await scrape(port)
    name = "talkoo_gateway_requests_total"
    assert scraped.total(name, method="GET", path="/v1/accounts/{account}") == 3
    assert scraped.total(name, status=str(statuses[0]), path="/v1/accounts/{account}") >= 1
    assert scraped.value(name, method="GET", path="/healthz", status="200") == 1
    assert scraped.value(name, method="GET", path="none", status="404") == 5
    assert scraped.total(name, method="other", status="405") == 1
    assert scraped.total("talkoo_gateway_request_seconds_count") == 10
    assert scraped.total("talkoo_grpc_calls_total", status="ok") >= 1
    assert not [labels for _, labels in scraped.samples if "BREW" in str(labels) or "nobody" in str(labels)]
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_wrong_settings_are_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    for change, message in (
        ({"ledgr": "x"}, "there is no setting 'ledgr'; did you mean 'ledger'?"),
        ({"blobs": "ftp://x"}, "names no blob store"),
        ({"http_listen": "nowhere"}, "http_listen 'nowhere' is not host:port"),
        ({"certificate": "/nonexistent.pem"}, "/nonexistent.pem"),
    ):
        process = await start(tmp_path, {**settings, **change})
        out, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode not in (0, None)
        assert out == b""
        assert message in err.decode().splitlines()[-1]


async def test_a_taken_port_is_one_line(house: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    process = await start(tmp_path, {**settings, "http_listen": house.http_address})
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 8
    assert f"cannot listen on {house.http_address}" in err.decode().splitlines()[-1]
