"""Each command against a real gateway (stand-ins behind it), run as its own process would run it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from talkoo_api.ledger.v1 import service_pb2, state_pb2

from talkoo_core.signing import PrivateKey
from talkoo_runtime.keys import address_of

ALICE = PrivateKey.from_seed(b"a" * 32)
BOB = PrivateKey.from_seed(b"b" * 32)
PROGRAM = "".join(f"def {name}(*a): ...\n" for name in ("build_model", "open_data", "loss", "correct", "predict"))
TASK = {
    "apiVersion": "talkoo.dev/v1alpha1",
    "kind": "TrainingTask",
    "metadata": {"name": "tiny"},
    "spec": {
        "program": {"path": ".", "module": "tiny"},
        "data": {"path": "tiny.bin"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "globalBatch": 8,
        "steps": 10,
        "stepsPerSegment": 5,
        "nodes": {"min": 1},
        "budget": "2 TLK",
        "price": "0.1 TLK",
        "model": {"name": "tiny"},
    },
}


class Shell:
    """Runs `talkoo` in a home folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def __call__(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "talkoo",
            *arguments,
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "TALKOO_HOME": str(self.folder / "home")},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        return process.returncode or 0, out.decode(), err.decode()


def write_profile(folder: Path, profile: Any, home: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        "federation",
        "organization",
        "gateway",
        "http",
        "trust_bundle",
        "certificate",
        "private_key",
        "account_key",
    )
    lines = [f'{name} = "{getattr(profile, name)}"\n' for name in names]
    (folder / "profile.toml").write_text("".join(lines))


@pytest.fixture
async def shell(house: Any, tmp_path: Path) -> Shell:
    home = tmp_path / "home"
    write_profile(home, house.profile(ALICE, "alice"), home)
    write_profile(home / "users" / "bob", house.profile(BOB, "bob"), home)
    (tmp_path / "tiny.py").write_text(PROGRAM)
    (tmp_path / "tiny.bin").write_bytes(b"data")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    return Shell(tmp_path)


async def test_lists_as_table_json_and_yaml(house: Any, shell: Shell) -> None:
    task_id = house.add_task()
    house.add_model()
    await house.ledger.decide(service_pb2.Event(type="epoch"))
    for name in ("tasks", "nodes", "models", "accounts", "blocks"):
        status, table, err = await shell(name)
        assert (status, err) == (0, ""), err
        assert table.strip()
    status, out, _ = await shell("tasks", "-o", "json")
    assert json.loads(out)[0]["phase"] == "running"
    assert yaml.safe_load((await shell("nodes", "north-1", "-o", "yaml"))[1])["name"] == "north-1"
    assert task_id in (await shell("tasks", "digits"))[1]
    assert json.loads((await shell("accounts", "--me", "-o", "json"))[1])["label"] == "alice"
    assert json.loads((await shell("blocks", "1", "-o", "json"))[1])["proposer"] == "north"
    assert (await shell("payments"))[1] == "nothing has been paid yet\n"
    status, _, err = await shell("nodes", "noth-1")
    assert (status, err) == (3, "error: there is no node 'noth-1'; did you mean north-1?\n")


async def test_a_task_is_submitted_with_its_escrow_and_trace(house: Any, shell: Shell) -> None:
    status, out, err = await shell("submit", "task.yaml", "--flops-per-sample", "1000", "-q")
    assert status == 0, err
    task = house.ledger.state["tasks"][out.strip()]
    assert (task.spec.name, task.escrow_utlk, task.spec.flops_per_sample) == ("tiny", 2_000_000, 1000)
    assert task.trace.startswith("00-")
    assert len(list((house.folder / "blobs").rglob(task.spec.code.sha256))) == 1
    assert len(list((house.folder / "blobs").rglob(task.spec.data.sha256))) == 1
    status, out, _ = await shell("cancel", "tiny")
    assert (status, task.phase) == (0, state_pb2.TASK_PHASE_CANCELLED)


async def test_the_trace_of_a_task_begins_at_its_submission(house: Any, shell: Shell) -> None:
    status, out, err = await shell("submit", "task.yaml", "--flops-per-sample", "1000", "-q")
    assert status == 0, err
    written = (shell.folder / "home" / "traces" / "talkoo-cli.jsonl").read_text().splitlines()
    span = next(item for item in map(json.loads, written) if item["name"] == "task.submit")
    assert house.ledger.state["tasks"][out.strip()].trace.split("-")[1:3] == [span["trace_id"], span["span_id"]]


async def test_a_watched_task_that_fails_ends_with_its_reason_and_status_10(house: Any, shell: Shell) -> None:
    watched = asyncio.create_task(shell("submit", "task.yaml", "--flops-per-sample", "1000", "--watch"))
    async with asyncio.timeout(30):
        while not house.ledger.state["tasks"]:
            await asyncio.sleep(0.02)
    task_id, task = next(iter(house.ledger.state["tasks"].items()))
    task.phase, task.failure = state_pb2.TASK_PHASE_FAILED, "tiny.loss raised ValueError: no (tiny.py, line 3)"
    attributes = [service_pb2.Attribute(key="message", value=task.failure)]
    await house.ledger.decide(service_pb2.Event(type="task_failed", subject=task_id, attributes=attributes))
    status, out, err = await watched
    assert status == 10, err
    assert "failed: tiny.loss raised ValueError" in out
    assert err.splitlines()[-1] == "error: task tiny failed: tiny.loss raised ValueError: no (tiny.py, line 3)"


BAD = [
    (
        {"spec": {"budget": "1000 TLK"}},
        5,
        "alice holds 100.0 TLK but the task needs 1,000.0 TLK and a fee of 0.001 TLK",
    ),
    ({"spec": {"budget": "0.000001 TLK"}}, 5, "does not cover 10 steps at 0.1 TLK per GFLOP"),
    ({"spec": {"data": {"path": "other.bin"}}}, 3, "there is no data file"),
    ({"spec": {"data": {"path": "tiny.bin", "sha256": "0" * 64}}}, 2, "not the " + "0" * 64 + " of spec.data.sha256"),
    ({"spec": {"program": {"path": ".", "module": "tine"}}}, 2, "there is no module 'tine'"),
    ({"spec": {"program": {"path": "nowhere", "module": "tiny"}}}, 3, "there is no folder"),
    ({"spec": {"stepz": 1}}, 2, "spec.stepz is not a field; did you mean steps?"),
]


@pytest.mark.parametrize(("change", "status", "message"), BAD)
async def test_bad_input_is_one_line_and_moves_no_money(
    house: Any, shell: Shell, change: dict[str, Any], status: int, message: str
) -> None:
    document = {**TASK, "spec": {**TASK["spec"], **change["spec"]}}  # type: ignore[dict-item]
    (shell.folder / "task.yaml").write_text(yaml.safe_dump(document))
    before = house.ledger.state["accounts"][address_of(ALICE)].balance_utlk
    code, out, err = await shell("submit", "task.yaml", "--flops-per-sample", "1000000", "-q")
    assert (code, out) == (status, ""), err
    assert len(err.splitlines()) == 1
    assert message in err
    assert house.ledger.state["accounts"][address_of(ALICE)].balance_utlk == before
    assert not house.ledger.state["tasks"]


async def test_logs_and_explain(house: Any, shell: Shell) -> None:
    task_id = house.add_task()
    await house.agents[0].say("hello from the node", 10**9)
    status, out, err = await shell("logs", "digits")
    assert (status, out) == (0, "00:00:01.000 north-1/0 hello from the node\n"), err
    out = (await shell("explain", task_id))[1]
    assert out.splitlines() == [
        f"{task_id} (digits) is running: waits: 1 of 3 nodes fit",
        "  north-1: does not fit: 256 MiB free, 512 MiB needed",
    ]


async def test_a_request_is_paid_and_its_answer_printed(house: Any, shell: Shell) -> None:
    house.add_model()
    (shell.folder / "x.json").write_text("[[1]]")
    status, out, err = await shell("request", "digits", "--input", "@x.json")
    assert (status, out) == (0, "[5]\n"), err
    assert "digits@2, answered and signed by north-1 for 0.015 TLK" in err
    assert (await shell("request", "digits", "-i", "-", stdin="[[1]]"))[1] == "[5]\n"
    assert (await shell("request", "digits", "-i", "{nonsense"))[0] == 2
    assert (await shell("request", "digits", "-i", "@no.json"))[0] == 3
    assert (await shell("request", "digits", "-i", "[1]", "--most", "0.01"))[0] == 5


async def test_a_transfer_as_another_user(house: Any, shell: Shell) -> None:
    status, out, err = await shell("transfer", "alice", "1.5", "--as", "bob")
    assert status == 0, err
    assert out.startswith("1.5 TLK to alice in block ")
    assert house.ledger.state["accounts"][address_of(BOB)].balance_utlk == 3_499_000
    assert (await shell("transfer", "alice", "much"))[0] == 2
    assert (await shell("transfer", "carol", "1"))[0] == 3


async def test_a_gateway_that_is_away_says_how_to_start_it(house: Any, shell: Shell) -> None:
    profile = shell.folder / "home" / "profile.toml"
    profile.write_text(profile.read_text().replace(house.grpc_address, "127.0.0.1:1"))
    status, out, err = await shell("tasks")
    assert (status, out) == (7, "")
    assert err.startswith("error: the gateway at 127.0.0.1:1 cannot be reached; start the federation with `talkoo up`")
    assert len(err.splitlines()) == 1


async def test_a_reader_of_the_list_may_go_away(house: Any, shell: Shell) -> None:
    for _ in range(50):
        house.add_task()
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m talkoo tasks -o json | head -1",
        cwd=shell.folder,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "TALKOO_HOME": str(shell.folder / "home")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (out, err) == (b"[\n", b"")
