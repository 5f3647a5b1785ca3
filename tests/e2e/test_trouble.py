"""What can go wrong, in a real federation: each gets one clear line and costs nobody money or state."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.federation
FEES_UTLK = 10_000
RETURN_LOSS = "return nn.functional.cross_entropy(model(pictures), labels)"

WORN_OUT = "CALLS.append(1)\n    if len(CALLS) > 40:\n        raise RuntimeError('worn out')\n    "


@pytest.fixture
def unharmed(home: Any) -> Iterator[None]:
    """alice's balance is the same afterwards, but for fees."""
    before = home.balance("alice")
    yield
    assert before - FEES_UTLK <= home.balance("alice") <= before


def test_a_request_that_the_model_cannot_answer_says_why(home: Any) -> None:
    """First, because a later test sees its price return."""
    answer = home.run("request", "digits", "--input", json.dumps([[1, 2, 3]]), user="bob")
    assert "digits@1 could not answer" in answer.error_line()
    assert answer.status == 10


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("edits", "code", "said", "status"),
    [
        ({"globalBatch": "globalBtach"}, {}, "did you mean globalBatch", 2),
        ({"steps: 240": "steps: many"}, {}, "spec.steps must be a whole number", 2),
        ({"module: digits": "module: nothere"}, {}, "there is no module 'nothere'", 2),
        ({}, {"def loss(": "def lost("}, "loss", 2),
        ({}, {"    channels = int": "    raise ValueError('no such layer')\n    channels = int"}, "no such layer", 10),
        ({"path: digits.npz": "path: absent.npz"}, {}, "absent.npz", 3),
        ({"sha256: 8bdd": "sha256: 9bdd"}, {}, "correct the hash", 2),
        ({"budget: 80 TLK": "budget: 1 TLK"}, {}, "raise spec.budget by", 5),
        ({"budget: 80 TLK": "budget: 900 TLK"}, {}, "are missing", 5),
    ],
    ids=["field", "type", "module", "function", "raises", "data", "hash", "budget", "balance"],
)
def test_a_wrong_task_is_refused_before_any_money_moves(
    home: Any, program: Callable[..., Path], edits: dict[str, str], code: dict[str, str], said: str, status: int
) -> None:
    answer = home.run("submit", str(program(edits, code)))
    assert said in answer.error_line()
    assert answer.status == status


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ({RETURN_LOSS: RETURN_LOSS + " * float('nan')"}, "the loss is nan at step 0"),
        ({"def loss(": "CALLS = []\n\n\ndef loss(", RETURN_LOSS: WORN_OUT + RETURN_LOSS}, "worn out"),
    ],
    ids=["nan", "raises later"],
)
def test_a_task_that_fails_while_it_trains_says_why_and_returns_the_money(
    home: Any, program: Callable[..., Path], eventually: Any, code: dict[str, str], said: str
) -> None:
    """What was honestly trained before is audited and paid; everything else returns."""
    before = home.balance("alice")
    answer = home.run("submit", str(program({"name: digits\nspec": "name: broken\nspec"}, code)), "--watch")
    assert answer.status == 10
    assert said in answer.error_line()

    def settled() -> Any:
        task = home.task("broken")
        return task if task["escrow_utlk"] == 0 else None

    task = eventually(settled, "the escrow is paid out or returned")
    assert task["spent_utlk"] <= before - home.balance("alice") <= task["spent_utlk"] + FEES_UTLK


@pytest.mark.usefixtures("unharmed")
def test_a_task_that_no_node_fits_waits_with_a_reason_and_can_be_cancelled(
    home: Any, program: Callable[..., Path], eventually: Any
) -> None:
    task = home.submit(program({"memory: 256Mi": "memory: 900Gi"}))
    eventually(lambda: "MiB of 921600 MiB" in home.ok("explain", task), "the scheduler says why it waits")
    assert home.task(task)["phase"] == "pending"
    home.ok("cancel", task)
    assert home.task(task)["phase"] == "cancelled"


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (("request", "nomodel", "--input", "[[1]]"), "there is no model 'nomodel'", 3),
        (("transfer", "tlk1qqq", "5"), "tlk1qqq", 3),
        (("transfer", "bob", "many"), "is not an amount", 2),
        (("transfer", "bob", "50000"), "are missing", 5),
        (("explain", "task-0000000000000000"), "there is no task", 3),
        (("--as", "carol", "accounts"), "no user 'carol'", 3),
    ],
)
def test_a_wrong_command_is_one_line(home: Any, arguments: tuple[str, ...], said: str, status: int) -> None:
    answer = home.run(*arguments)
    assert said in answer.error_line()
    assert answer.status == status


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("inputs", "said", "status"),
    [("[[1, 2", "is not JSON", 2), ("@absent.json", "absent.json", 3)],
    ids=["json", "file"],
)
def test_a_request_that_cannot_be_read_costs_nothing(home: Any, inputs: str, said: str, status: int) -> None:
    answer = home.run("request", "digits", "--input", inputs)
    assert said in answer.error_line()
    assert answer.status == status


def test_the_price_of_the_unanswered_request_returns(home: Any, eventually: Any) -> None:
    """The ledger's deadline for it began with the first test of this module."""

    def refunded() -> Any:
        own = [
            p for p in home.json("payments", "bob") if p["source"].startswith("escrow:req") and p["kind"] == "refund"
        ]
        return own and own[0]["amount_utlk"] > 0

    eventually(refunded, "the price returns", 120.0)


def test_money_is_spent_once_and_a_replay_or_garbage_changes_nothing(home: Any) -> None:
    """Two transfers with one nonce: one is final. The same bytes again, and bytes that are none, are refused."""
    from talkoo_api.ledger.v1 import service_pb2, tx_pb2

    from talkoo.client_async import AsyncClient
    from talkoo_core.errors import Conflict, InvalidInput, TalkooError
    from talkoo_runtime.grpc_client import error_from_rpc
    from talkoo_runtime.transactions import sign_transaction, transaction_hash

    async def spend_twice() -> None:
        import grpc

        async with AsyncClient(home.folder, user="bob") as client:
            account, status, params = await client.account(), await client.status(), await client.params()
            amount = account.balance_utlk - 2 * params.min_fee_utlk
            alice = next(a.address for a in await client.accounts() if a.label == "alice")
            signed = [
                sign_transaction(client.key, status.chain_id, account.nonce, params.min_fee_utlk, message)
                for message in (
                    tx_pb2.Transfer(to=alice, amount_utlk=amount),
                    tx_pb2.Transfer(to=alice, amount_utlk=amount - 1),
                )
            ]

            async def send(raw: bytes) -> TalkooError | None:
                try:
                    await client.stub.Broadcast(service_pb2.BroadcastRequest(tx=raw), timeout=10)
                except grpc.aio.AioRpcError as error:
                    return error_from_rpc(error)
                return None

            assert await send(signed[0]) is None
            assert isinstance(await send(signed[1]), Conflict)
            await client.ledger.wait_tx(transaction_hash(signed[0]), timeout_s=30)
            assert isinstance(await send(signed[0]), Conflict)
            assert isinstance(await send(b"\xff garbage"), InvalidInput)
            left = await client.account()
            assert left.balance_utlk == account.balance_utlk - amount - params.min_fee_utlk

    asyncio.run(spend_twice())
    answer = home.run("request", "digits", "--input", json.dumps([[0] * 64]), user="bob")
    assert answer.status == 5
    back = home.ok("transfer", "bob", "20")
    assert back


def test_a_peer_without_a_certificate_is_refused_at_every_door(home: Any) -> None:
    import ssl

    plan = json.loads((home.folder / "federation.json").read_text())
    ports = [
        o[f"{role}_port"] for o in plan["organizations"] for role in ("ledger", "scheduler", "validator", "gateway")
    ]
    ports += [node["port"] for o in plan["organizations"] for node in o["nodes"]] + [plan["etcd_port"]]

    async def knock(port: int) -> bool:
        """Whether the door lets a stranger say something and answers."""
        context = ssl.create_default_context(cafile=str(home.folder / "trust.pem"))
        context.set_alpn_protocols(["h2"])
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            await writer.drain()
            answer = await asyncio.wait_for(reader.read(64), 10)
            writer.close()
        except (ssl.SSLError, ConnectionError):
            return False
        return bool(answer)

    async def all_doors() -> list[bool]:
        return await asyncio.gather(*(knock(port) for port in ports))

    assert not any(asyncio.run(all_doors()))


def test_a_second_up_on_the_same_home_says_that_one_runs(home: Any) -> None:
    answer = home.run("up", "--home", str(home.folder))
    assert "already runs in" in answer.error_line()
    assert answer.status == 4


def test_a_task_survives_a_killed_agent_and_a_killed_ledger_node(
    home: Any, program: Callable[..., Path], eventually: Any
) -> None:
    task = home.submit(program({"steps: 240": "steps: 150", "max: 4": "max: 3"}))
    eventually(lambda: home.task(task)["next_segment"] >= 1, "the first segment is committed", 120.0)
    shards = home.task(task)["shards"]
    names = {node["id"]: node for node in home.json("nodes")}
    victim = names[shards[-1]["node_id"]]
    agent = home.kill(f"/nodes/{victim['name']}/settings.toml")
    home.kill("/organizations/south/ledger/settings.toml")
    record = home.ended(task)
    assert record["phase"] == "completed", record
    assert record["attempt"] >= 2
    text = home.log.read_text()
    assert f"{victim['name']} was ended by SIGKILL" in text
    assert "south-ledger was ended by SIGKILL" in text

    def back() -> bool:
        running = home.processes(f"/nodes/{victim['name']}/settings.toml")
        return bool(running) and running[0].pid != agent

    eventually(back, "the killed agent runs again")
    assert "proofs hold" in home.ok("verify", task)


def test_a_task_goes_on_from_its_checkpoint_when_a_trainer_is_killed(
    home: Any, program: Callable[..., Path], eventually: Any
) -> None:
    task = home.submit(program({"steps: 240": "steps: 120", "max: 4": "max: 3"}))
    eventually(lambda: home.task(task)["next_segment"] >= 1, "the first segment is committed", 120.0)
    nodes = {node["id"]: node["name"] for node in home.json("nodes")}
    record = home.task(task)
    (agent,) = home.processes(f"/nodes/{nodes[record['shards'][-1]['node_id']]}/settings.toml")
    trainers = [child for child in agent.children() if "talkoo_agent.trainer" in child.cmdline()]
    assert trainers
    for trainer in trainers:
        trainer.kill()
    ended = home.ended(task)
    assert ended["phase"] == "completed", ended
    assert ended["attempt"] > record["attempt"]
    assert agent.is_running(), "only the trainer was killed"
    assert "proofs hold" in home.ok("verify", task)


def test_ctrl_c_and_a_second_up_lose_nothing(home: Any) -> None:
    """Last: it stops the federation that the other tests use, starts it again, and leaves it stopped."""
    before = {a["label"]: int(a["balance_utlk"]) for a in home.json("accounts")}
    height = home.height()
    took = home.stop()
    assert took < 20
    answer = home.run("tasks")
    assert answer.status == 7
    assert "talkoo up" in answer.error_line()
    home.start()
    assert home.height() >= height
    after = {a["label"]: int(a["balance_utlk"]) for a in home.json("accounts")}
    users = ("alice", "bob")
    assert {u: after[u] for u in users} == {u: before[u] for u in users}
    assert json.loads(
        home.ok("request", "digits", "--input", f"@{Path(__file__).parents[2]}/examples/digits/three.json")
    )
    home.stop()  # the tests of other rooms need the processor
