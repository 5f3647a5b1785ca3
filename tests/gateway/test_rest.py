"""REST: over ASGI for the rules, over one real HTTPS socket for the server."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from talkoo_api.ledger.v1 import service_pb2, state_pb2, tx_pb2
from talkoo_gateway.blob_transfers import BlobTransfers
from talkoo_gateway.desk import Desk
from talkoo_gateway.operations import OPERATIONS
from talkoo_gateway.rest import make_app
from talkoo_gateway.settings import GatewaySettings
from talkoo_gateway.tokens import ensure_token
from talkoo_gateway.upstreams import Upstreams

from talkoo_core.signing import PrivateKey
from talkoo_runtime.blobs import open_blob_store
from talkoo_runtime.keys import address_of
from talkoo_runtime.transactions import sign_transaction

ALICE = PrivateKey.from_seed(b"a" * 32)
TOKEN = "t" * 43


@pytest.fixture
async def http(house: Any, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The application itself, over the stand-ins, without a socket of its own."""
    settings = GatewaySettings(
        **house.settings(
            "gateway",
            "north-gateway",
            http_listen="127.0.0.1:1",
            ledger=house.ledger_address,
            scheduler=house.scheduler_address,
            validator=house.validator_address,
            blobs=f"file://{tmp_path}/blobs",
        )
    )
    upstreams = Upstreams(settings)
    desk = Desk(upstreams, BlobTransfers(open_blob_store(settings.blobs), tmp_path / "rest-state"))
    transport = httpx.ASGITransport(make_app(desk, TOKEN), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="https://gateway") as client:
        yield client
    await upstreams.close()


def transfer(nonce: int = 0) -> bytes:
    message = tx_pb2.Transfer(to=address_of(ALICE), amount_utlk=1)
    return sign_transaction(ALICE, "chain-test", nonce, 1000, message)


async def test_every_read_answers_as_its_schema_says(house: Any, http: httpx.AsyncClient) -> None:
    task_id = house.add_task()
    house.add_model()
    house.ledger.state["requests"]["req-1"] = state_pb2.ModelRequest(id="req-1", state="open")
    house.ledger.state["segments"][f"{task_id}/000001/000000"] = state_pb2.Segment(
        task_id=task_id, outcome=tx_pb2.Verdict(available=True), beacon=b"\x01\x02"
    )
    await house.ledger.decide()
    values = {
        "account": address_of(ALICE),
        "node": address_of(house.agents[0].key),
        "task": task_id,
        "version": "digits",
        "request": "req-1",
        "hash": "00" * 32,
    }
    for operation in OPERATIONS:
        if operation.method != "GET" or operation.media != "application/json" or "{hash}" in operation.path:
            continue
        answer = await http.get(operation.path.format(**values))
        assert answer.status_code == 200, (operation.path, answer.text)
        if operation.gives is not None:
            operation.gives.model_validate(answer.json())


async def test_integers_stay_exact_bytes_are_hex_and_enums_words(house: Any, http: httpx.AsyncClient) -> None:
    task_id = house.add_task()
    house.ledger.state["tasks"][task_id].spec.seed = 2**63 - 1
    house.ledger.state["tasks"][task_id].beacon = b"\xab\xcd"
    task = (await http.get(f"/v1/tasks/{task_id}")).json()
    assert (task["phase"], task["beacon"], task["spec"]["seed"]) == ("running", "abcd", 2**63 - 1)


async def test_pages_go_on_with_after(house: Any, http: httpx.AsyncClient) -> None:
    first = (await http.get("/v1/accounts?limit=1")).json()
    second = (await http.get("/v1/accounts", params={"limit": 1, "after": first["next"]})).json()
    assert {first["items"][0]["label"], second["items"][0]["label"]} == {"alice", "bob"}
    assert second["next"] is None


async def test_a_signed_transaction_needs_no_token(house: Any, http: httpx.AsyncClient) -> None:
    tx = transfer()
    sent = await http.post("/v1/transactions", json={"tx": base64.b64encode(tx).decode()})
    assert sent.status_code == 202
    assert sent.json() == {"hash": hashlib.sha256(tx).hexdigest()}
    result = await http.get(sent.headers["location"] + "?wait=1")
    assert result.json()["kind"] == "transfer"
    raw = await http.post(
        "/v1/transactions?wait=5", content=transfer(1), headers={"content-type": "application/octet-stream"}
    )
    assert raw.json()["code"] == 0


PROBLEMS = [
    ("GET", "/v1/tasks/task-nowhere", {}, 404, "not_found", "no_value"),
    ("GET", "/v1/nowhere", {}, 404, "not_found", "not_found"),
    ("DELETE", "/v1/tasks", {}, 405, "invalid_input", "invalid_input"),
    ("GET", "/v1/tasks?limit=0", {}, 400, "invalid_input", "bad_request"),
    ("GET", "/v1/tasks?colour=red", {}, 400, "invalid_input", "bad_request"),
    ("GET", "/v1/transactions/xyz", {}, 400, "invalid_input", "invalid_input"),
    ("GET", "/v1/transactions/" + "00" * 32, {}, 404, "not_found", "not_final_yet"),
    ("GET", "/v1/blobs/" + "00" * 32, {}, 404, "not_found", "no_blob"),
    ("GET", "/v1/models/digits@x", {}, 400, "invalid_input", "invalid_input"),
    ("POST", "/v1/transactions", {"json": {"tx": "%%%"}}, 400, "invalid_input", "invalid_input"),
    ("POST", "/v1/transactions", {"json": {"txt": "x"}}, 400, "invalid_input", "bad_request"),
    ("POST", "/v1/transactions", {"content": b"{"}, 400, "invalid_input", "bad_request"),
    ("POST", "/v1/blobs", {"content": b"x"}, 401, "permission_denied", "no_token"),
    (
        "POST",
        "/v1/blobs",
        {"content": b"x", "headers": {"authorization": "Bearer x"}},
        403,
        "permission_denied",
        "wrong_token",
    ),
    ("POST", "/v1/requests/req-1/infer", {"json": {}}, 401, "permission_denied", "no_token"),
]


@pytest.mark.parametrize(("method", "path", "more", "status", "family", "code"), PROBLEMS)
async def test_problems_have_a_status_a_family_and_a_code(
    http: httpx.AsyncClient, method: str, path: str, more: dict[str, Any], status: int, family: str, code: str
) -> None:
    answer = await http.request(method, path, **more)
    document = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, document["family"], document["code"]) == (status, family, code), document
    assert document["status"] == status
    assert document["detail"]
    assert document["type"] == f"urn:talkoo:problem:{family}"


async def test_blobs_need_the_token_and_come_back(http: httpx.AsyncClient) -> None:
    content = b"weights" * 1000
    stored = await http.post("/v1/blobs", content=content, headers={"authorization": f"Bearer {TOKEN}"})
    assert stored.status_code == 201
    assert stored.json() == {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    assert (await http.get(stored.headers["location"])).content == content


async def test_a_body_over_its_bound_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/transactions", content=b"x" * (9 << 20))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    declared = await http.post(
        "/v1/blobs", content=b"", headers={"authorization": f"Bearer {TOKEN}", "content-length": str(1 << 40)}
    )
    assert declared.status_code == 413


async def test_a_paid_request_is_answered(house: Any, http: httpx.AsyncClient) -> None:
    house.ledger.state["requests"]["req-1"] = state_pb2.ModelRequest(
        id="req-1", node_id=address_of(house.agents[0].key)
    )
    body = {"version": "digits@1", "input_json": "[[1]]"}
    answer = await http.post("/v1/requests/req-1/infer", json=body, headers={"authorization": f"Bearer {TOKEN}"})
    assert bytes.fromhex(answer.json()["output_json"]) == b"[5]"


async def test_logs_are_followed_as_server_sent_events_until_the_task_ends(house: Any, http: httpx.AsyncClient) -> None:
    task_id = house.add_task()
    await house.agents[0].say("line one", 10)
    task = house.ledger.state["tasks"][task_id]
    task.phase = state_pb2.TASK_PHASE_COMPLETED
    answer = await http.get(f"/v1/tasks/{task_id}/logs?follow=true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line for line in answer.text.split("\n\n") if line]
    assert json.loads(events[0].removeprefix("data: "))["text"] == "line one"
    assert events[-1].startswith("event: end")
    listed = (await http.get(f"/v1/tasks/{task_id}/logs")).json()
    assert [line["text"] for line in listed["items"]] == ["line one"]


async def test_the_openapi_document_names_every_operation(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    told = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert told == {(operation.method, operation.path) for operation in OPERATIONS}
    names = set(document["components"]["schemas"])
    text = json.dumps(document)
    used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used <= names
    identities = [o["operationId"] for methods in document["paths"].values() for o in methods.values()]
    assert len(identities) == len(set(identities))


async def test_readiness_is_that_of_the_ledger(house: Any, http: httpx.AsyncClient) -> None:
    assert (await http.get("/readyz")).status_code == 200
    for server in house.servers:
        await server.stop(0)
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["ok"]) == (503, False)
    assert (await http.get("/healthz")).json()["ok"] is True
    assert (await http.get("/v1/status")).json()["family"] == "unavailable"


async def test_over_a_real_socket_it_is_https_only(house: Any) -> None:
    trusting = ssl.create_default_context(cafile=str(house.folder / "trust.pem"))
    async with httpx.AsyncClient(verify=trusting, base_url=f"https://{house.http_address}") as client:
        assert (await client.get("/v1/status")).json()["chain_id"] == "chain-test"
        content = b"over the wire"
        stored = await client.post("/v1/blobs", content=content, headers={"authorization": f"Bearer {house.token}"})
        assert stored.status_code == 201
    async with httpx.AsyncClient() as plain:
        with pytest.raises(httpx.HTTPError):
            await plain.get(f"http://{house.http_address}/healthz")
    async with httpx.AsyncClient() as stranger:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE"):
            await stranger.get(f"https://{house.http_address}/healthz")


async def test_blocks_are_a_range_of_what_is_decided(house: Any, http: httpx.AsyncClient) -> None:
    for _ in range(5):
        await house.ledger.decide(service_pb2.Event(type="epoch"))
    page = (await http.get("/v1/blocks?from=2&limit=2")).json()
    assert ([block["height"] for block in page["items"]], page["next"]) == ([2, 3], "4")
    newest = (await http.get("/v1/blocks?limit=2")).json()
    assert ([block["height"] for block in newest["items"]], newest["next"]) == ([4, 5], None)


def test_the_token_is_made_once_and_only_for_its_user(tmp_path: Path) -> None:
    token = ensure_token(tmp_path / "state")
    assert ensure_token(tmp_path / "state") == token
    assert stat.S_IMODE((tmp_path / "state" / "rest.token").stat().st_mode) == 0o600
    assert len(token) >= 32
