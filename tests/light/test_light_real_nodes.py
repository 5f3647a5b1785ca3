"""`talkoo light` over the RPC of real ledger nodes, under our own engine and under CometBFT."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_consensus.encoding import block_id_of, decode_block

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_sim.comet_processes import CometLedgers
from talkoo_sim.ledger_chain import address, hex_of, registration, task_spec
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.ports import free_ports
from talkoo_sim.tampering_proxy import TamperingProxy

COMMAND_S = 120.0
AMOUNT_UTLK = 7_000_000
GANG = ("north-1", "east-1")
JUDGES = ("north", "east", "south")
SALT = bytes(32)


@pytest.fixture(params=["embedded", "cometbft"])
async def network(request: Any, tmp_path: Path) -> AsyncIterator[tuple[Ledgers, dict[str, int]]]:
    """Four running nodes and the ports of their RPCs."""
    if request.param == "cometbft":
        request.getfixturevalue("cometbft")
        under_comet = CometLedgers(tmp_path)
        ledgers: Ledgers = under_comet
        ports = under_comet.rpc_ports
    else:
        ledgers = Ledgers(tmp_path)
        ports = dict(zip(ledgers.names, free_ports(len(ledgers.names)), strict=True))
        for name, port in ports.items():
            ledgers.write_settings(name, rpc_listen=f"127.0.0.1:{port}")
    ledgers.start()
    await ledgers.reach(3)
    yield ledgers, ports
    await ledgers.close()


async def talkoo_light(home: Path, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "talkoo",
        "light",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"HOME": str(home)},
    )
    out, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def trained(ledgers: Ledgers) -> str:
    """A task of one segment, funded, placed, committed, judged and paid: its model stands on the chain."""
    for name in GANG:
        await ledgers.client("north", name).submit(registration(name))
    spec = task_spec(steps=10, steps_per_segment=10)
    create = tx_pb2.CreateTask(spec=spec, escrow_utlk=50 * UTLK_PER_TLK)
    task_id = (await ledgers.client("north", "alice").submit(create)).born_id
    shards = [
        tx_pb2.Shard(node_id=address(name), rank=rank, samples=50, price_utlk_per_gflop=1_000_000)
        for rank, name in enumerate(GANG)
    ]
    place = tx_pb2.PlaceTask(task_id=task_id, attempt=1, shards=shards, reason="they fit")
    await ledgers.client("north", "north-scheduler").submit(place)
    for rank, name in enumerate(GANG):
        await ledgers.client("north", name).submit(commitment(task_id, rank))
    client = ledgers.client("north")

    async def opened() -> bool:
        return (await client.segment(task_id, 1, 0)).phase == state_pb2.SEGMENT_PHASE_AUDITED

    await ledgers.eventually(opened, "the segment is opened")
    verdict = tx_pb2.Verdict(
        task_id=task_id,
        attempt=1,
        findings=[tx_pb2.RankFinding(rank=rank, honest=True) for rank in range(len(GANG))],
        available=True,
        heldout_correct=340,
        heldout_total=360,
    ).SerializeToString()
    judges = [ledgers.client(name, f"{name}-validator") for name in JUDGES]
    for judge in judges:
        digest = hashlib.sha256(SALT + verdict).digest()
        await judge.submit(tx_pb2.CommitVerdict(task_id=task_id, attempt=1, digest=digest))
    for judge in judges:
        await judge.submit(tx_pb2.RevealVerdict(salt=SALT, verdict=verdict))

    async def registered() -> bool:
        return (await client.task(task_id)).model_version == "digits@1"

    await ledgers.eventually(registered, "the model is registered")
    return task_id


def commitment(task_id: str, rank: int) -> tx_pb2.CommitSegment:
    return tx_pb2.CommitSegment(
        task_id=task_id,
        attempt=1,
        rank=rank,
        root=hashlib.sha256(b"root %d" % rank).digest(),
        transcript_sha256=hex_of(f"transcript {rank}"),
        params_sha256=hex_of("params"),
        optimizer_sha256=hex_of("optimizer"),
        samples=500,
        flops=500 * 2_000_000,
        energy_mj=5_000,
        duration_ms=100,
    )


@pytest.mark.timeout(600)
async def test_values_of_a_real_chain_are_proven_and_lies_are_not(
    network: tuple[Ledgers, dict[str, int]], tmp_path: Path
) -> None:
    ledgers, ports = network
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    message = tx_pb2.Transfer(to=address("bob"), amount_utlk=AMOUNT_UTLK)
    await ledgers.client("north", "alice").submit(message)
    task_id = await trained(ledgers)
    trusted = block_id_of(decode_block((await ledgers.blocks("west"))[1].block)).hash.hex()
    where = ["--primary", urls["north"], "--witness", urls["east"]]
    trust = ["--trusted-height", "2", "--trusted-hash", trusted]

    status, out, err = await talkoo_light(tmp_path, *where, *trust, "--once")
    assert (status, err) == (0, "")
    assert out.startswith("verified ")

    status, out, err = await talkoo_light(tmp_path, "account", address("bob"), *where, "-o", "json")
    assert (status, err) == (0, ""), err
    proven = json.loads(out)
    assert proven["balance_utlk"] == (await ledgers.client("south").account(address("bob"))).balance_utlk
    assert proven["proof"]["header_height"] == proven["proof"]["height"] + 1

    status, out, err = await talkoo_light(tmp_path, "task", "task-0000000000000000", *where, "-o", "json")
    assert (status, json.loads(out)["exists"]) == (0, False), err
    status, out, err = await talkoo_light(tmp_path, "task", task_id, *where, "-o", "json")
    assert (status, json.loads(out)["model_version"]) == (0, "digits@1"), err
    status, out, err = await talkoo_light(tmp_path, "model", "digits@1", *where, "-o", "json")
    assert (status, json.loads(out)["task_id"]) == (0, task_id), err

    with TamperingProxy(ports["north"]) as proxy:
        proxy.alter("abci_query", richer)
        alone = [*trust, "--primary", proxy.url, "--store", str(tmp_path / "other")]
        status, out, err = await talkoo_light(tmp_path, "account", address("bob"), *alone)
        assert (status, out) == (9, "")
        assert "the proof proves nothing" in " ".join(err.split())
        assert proxy.altered > 0


def richer(result: Any) -> None:
    """One byte of the account is another."""
    value = bytearray(base64.b64decode(result["response"]["value"]))
    value[-1] ^= 1
    result["response"]["value"] = base64.b64encode(bytes(value)).decode()
