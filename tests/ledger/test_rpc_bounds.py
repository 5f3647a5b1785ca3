"""What the RPC does with bad input, with too much, and with clients that do not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from talkoo_ledger.event_query import parse_query
from talkoo_ledger.rpc.calls import MAX_BATCH
from talkoo_ledger.rpc.routes import PARAMETERS
from talkoo_ledger.rpc.server import MAX_BODY_BYTES, MAX_WEBSOCKETS
from talkoo_ledger.rpc.subscriptions import MAX_CLIENTS

from talkoo_core.errors import Exhausted, InvalidInput
from talkoo_sim.still_node import StillNode, begun


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[StillNode]:
    made = begun(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StillNode]:
    """The same for many tests that decide nothing."""
    made = begun(tmp_path_factory.mktemp("chain"))
    yield made
    made.close()


async def test_a_batch_is_answered_in_order_without_its_notifications(still: StillNode) -> None:
    asked = [
        {"jsonrpc": "2.0", "id": "a", "method": "header", "params": ["2"]},
        {"jsonrpc": "2.0", "method": "health"},
        {"jsonrpc": "2.0", "id": 2, "method": "nothing"},
        {"jsonrpc": "2.0", "id": 3, "method": "header", "params": {"height": "9"}},
    ]
    answers = await still.post(asked)
    assert [answer["id"] for answer in answers] == ["a", 2, 3]
    assert answers[0]["result"]["header"]["height"] == "2"
    assert answers[1]["error"] == {"code": -32601, "message": "Method not found"}
    assert answers[2]["error"]["code"] == -32603
    many = await still.post([asked[0]] * (MAX_BATCH + 1))
    assert many["error"]["code"] == -32600
    assert await still.post([]) is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b'"x"', -32700),
        (b"[1]", -32700),
        (b"[" * 100_000, -32700),
        (b'{"id":' + b"9" * 5_000 + b"}", -32700),
        (b'{"jsonrpc":"2.0","id":{},"method":"health"}', -32700),
        (b'{"jsonrpc":"2.0","id":true,"method":"health"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32700),
        (b"\xff\xfe", -32700),
        (b'{"jsonrpc":"2.0","id":9999999999999999999999,"method":"health"}', -32700),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"health"}', -32700),
        (b'{"jsonrpc":"2.0","id":"\\ud800","method":"health"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"tx_search","params":{"query":"a.b = \'\\ud800\'"}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"broadcast_evidence","params":{"evidence":'
         b'{"type":"tendermint/DuplicateVoteEvidence","value":{"vote_a":{"type":"\\ud800"}}}}}', -32603),
        (b'{"jsonrpc":"2.0","id":1,"method":"subscribe","params":{"query":"tm.event=\'Tx\'"}}', -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":7}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":["1","2"]}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":"x"}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":1.5}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"block","params":{"height":"9223372036854775808"}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"tx","params":{"hash":"!"}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"tx","params":{"hash":"AA==","prove":1}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"header_by_hash","params":{"hash":"abc"}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"broadcast_tx_sync","params":{"tx":{}}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"broadcast_evidence","params":{"evidence":"x"}}', -32603),
        (b'{"jsonrpc":"2.0","id":1,"method":"broadcast_evidence","params":{"evidence":'
         b'{"type":"tendermint/DuplicateVoteEvidence","value":{"vote_a":[],"vote_b":7}}}}', -32603),
        (b" " * (MAX_BODY_BYTES + 1), -32600),
    ],
    ids=range(27),
)  # fmt: skip
async def test_a_bad_body_is_answered_by_a_typed_error(still: StillNode, body: bytes, code: int) -> None:
    assert (await still.post(body))["error"]["code"] == code
    assert await still.get("health") == {}


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("block?height=abc", -32602),
        ("block?height=0x12", -32602),
        ("block?height=99999999999999999999999", -32602),
        ("block?height=%FF", -32600),
        ("tx?hash=0xzz", -32602),
        ("tx?hash=abc", -32602),
        ("tx?hash=0x00&prove=maybe", -32602),
        ("abci_query?path=/store", -32602),
        ("abci_query?path=0xff", -32602),
        ("broadcast_evidence?evidence=%22x%22", -32603),
        ("subscribe?query=%22x%22", -32601),
        ("health?" + "&".join(f"a{n}=1" for n in range(40)), -32600),
    ],
)
async def test_a_bad_uri_is_answered_by_a_typed_error(still: StillNode, uri: str, code: int) -> None:
    path, _, query = uri.partition("?")
    _, body = await still.http("GET", f"/{path}", query)
    assert json.loads(body)["error"]["code"] == code


class Slow:
    """A client that reads nothing after its first event."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def has_room(self) -> bool:
        return not self.told

    def tell(self, message: bytes) -> None:
        self.told.append(json.loads(message))


async def test_a_client_that_reads_too_slowly_loses_its_subscription_and_is_told_so(chain: StillNode) -> None:
    slow = Slow()
    chain.subscriptions.subscribe(slow, 5, "tm.event = 'NewBlockHeader'")
    running = asyncio.create_task(chain.subscriptions.run())
    try:
        for _ in range(4):
            await asyncio.sleep(0)  # the subscriptions wait for the next block
            told = len(slow.told)
            chain.decide()
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(slow.told) == min(told + 1, 2)
    finally:
        running.cancel()
    event, ended = slow.told
    assert event["result"]["data"]["value"]["header"]["height"] == "5"
    assert (ended["id"], ended["error"]["code"]) == (5, -32000)


async def test_websockets_are_bounded_and_their_places_are_given_back(still: StillNode) -> None:
    closing = asyncio.Event()
    accepted: list[bool] = []

    async def websocket() -> None:
        begun = False

        async def receive() -> dict[str, Any]:
            nonlocal begun
            if begun:
                await closing.wait()
                return {"type": "websocket.disconnect"}
            begun = True
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            accepted.append(message["type"] == "websocket.accept")

        await still.app({"type": "websocket", "path": "/websocket"}, receive, send)

    for _ in range(2):
        accepted.clear()
        closing.clear()
        tasks = [asyncio.create_task(websocket()) for _ in range(MAX_WEBSOCKETS + 1)]
        while len(accepted) <= MAX_WEBSOCKETS:
            await asyncio.sleep(0)
        assert sorted(accepted) == [False] + [True] * MAX_WEBSOCKETS
        closing.set()
        await asyncio.gather(*tasks)


async def test_subscribers_are_bounded(still: StillNode) -> None:
    clients = [Slow() for _ in range(MAX_CLIENTS + 1)]
    for client in clients[:-1]:
        still.subscriptions.subscribe(client, 1, "tm.event = 'Tx'")
    with pytest.raises(Exhausted):
        still.subscriptions.subscribe(clients[-1], 1, "tm.event = 'Tx'")
    with pytest.raises(Exhausted):
        still.subscriptions.subscribe(clients[0], 2, "tm.event='Tx'")
    for client in clients:
        still.subscriptions.forget(client)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({each.name for parameters in PARAMETERS.values() for each in parameters})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from([name for name in PARAMETERS if name != "broadcast_tx_commit"]),
    params=st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=4) | JSON_VALUES,
)
async def test_whatever_the_parameters_are_the_answer_is_a_result_or_a_typed_error(
    still: StillNode, method: str, params: Any
) -> None:
    answer = await still.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    assert ("result" in answer) != ("error" in answer)
    if "error" in answer:
        assert answer["error"]["code"] in (-32602, -32603)
        assert "its log says why" not in answer["error"]["data"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | JSON_VALUES.map(lambda v: json.dumps(v).encode())
)
async def test_whatever_a_body_is_the_node_answers(still: StillNode, body: bytes) -> None:
    assert (await still.http("POST", "/", body=body))[0] in (200, 500)


WORDS = (
    *("tx.height", "a.b", "AND", "EXISTS", "CONTAINS", "=", "<", "<=", ">", ">=", "5", "0.5", "'x'", "''", "'", "TIME"),
    *("DATE 2026-01-31", "TIME 2026-01-31T12:00:00Z", "TIME 0001-01-01T00:00:00+14:00", "DATE 9999-99-99", "\u0663"),
)
VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.datetimes().map(lambda moment: moment.isoformat()),
    st.sampled_from(("0001-01-01T00:00:00-14:00", "9999-12-31T23:59:59+14:00", "5utlk", "-5", "1e400")),
)


@settings(max_examples=500, deadline=None)
@given(
    query=st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=12).map(" ".join) | st.text(max_size=40),
    values=st.dictionaries(st.sampled_from(("tx.height", "a.b")), st.lists(VALUES, max_size=3)),
)
def test_whatever_a_query_is_it_is_refused_with_words_or_held_against_any_values(query: str, values: Any) -> None:
    try:
        parsed = parse_query(query)
    except InvalidInput:
        return
    assert parsed.matches(values) in (True, False)
    assert not parsed.matches({})


@given(at=st.integers(0, 10**20), limit=st.integers(0, 10**20))
def test_numbers_are_compared_as_numbers_whatever_their_length(at: int, limit: int) -> None:
    holds = {op: parse_query(f"a.b {op} {limit}").matches({"a.b": [f"{at}utlk"]}) for op in ("<", "<=", "=", ">=", ">")}
    assert holds == {"<": at < limit, "<=": at <= limit, "=": at == limit, ">=": at >= limit, ">": at > limit}
