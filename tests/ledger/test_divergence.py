"""A validator whose state is not the others' halts and names the module that differs; the others go on."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest
from talkoo_api.ledger.v1 import service_pb2, tx_pb2
from talkoo_ledger import tree
from talkoo_ledger.asks import Asks
from talkoo_ledger.divergence import Diverged, explained
from talkoo_ledger.streams import Stream

from talkoo_core.errors import Corrupt
from talkoo_sim.ledger_chain import address

HEALTHY = ("-m", "talkoo_ledger")


def wrong(module: str, height: int) -> tuple[str, ...]:
    return ("-m", "talkoo_sim.diverging_node", f"{module}:{height}")


async def halts(ledgers: Any, name: str) -> str:
    """Its one line of error; the others decide on meanwhile."""
    process = ledgers.processes[name]

    async def stopped() -> bool:
        return process.poll() is not None

    await ledgers.eventually(stopped, f"{name} halts")
    assert process.returncode == Corrupt.exit_status
    (line,) = [line for line in ledgers.log(name).splitlines() if line.startswith("error: ")]
    result = await ledgers.client("south", "alice").submit(tx_pb2.Transfer(to=address("bob"), amount_utlk=1))
    assert result.code == 0
    return str(line)


@pytest.mark.parametrize("module", ["accounts", "organizations"])
async def test_a_validator_with_a_wrong_rule_halts_while_it_validates_and_proposes(ledgers: Any, module: str) -> None:
    ledgers.start("north", "east", "south")
    ledgers.launcher = wrong(module, 4)
    ledgers.start("west")
    line = await halts(ledgers, "west")
    assert "block 5 is final for the others and not for us" in line
    assert f"The state of block 4 differs in {module}." in line
    # With the wrong state on its disk it never takes part again, whatever its rules are now.
    ledgers.processes.pop("west")
    ledgers.launcher = HEALTHY
    ledgers.start("west")
    process = ledgers.processes["west"]

    async def stopped() -> bool:
        return process.poll() is not None

    await ledgers.eventually(stopped, "west halts again")
    assert ledgers.log("west").count(f"differs in {module}.") >= 2


async def test_a_node_with_a_wrong_rule_halts_while_it_catches_up(ledgers: Any) -> None:
    ledgers.start("north", "east", "south")
    await ledgers.reach(12, "north", "east", "south")
    ledgers.launcher = wrong("accounts", 6)
    ledgers.start("west")
    line = await halts(ledgers, "west")
    assert "block 7 is final for the others and not for us" in line
    assert "The state of block 6 differs in accounts." in line


async def test_an_entry_changed_on_the_disk_is_found_before_the_node_starts(ledgers: Any) -> None:
    ledgers.start()
    await ledgers.reach(3)
    ledgers.stop("west")
    database = sqlite3.connect(ledgers.folder / "west" / "state" / "ledger.db")
    with database:
        key, value = database.execute("SELECT key, value FROM entries WHERE module = 'organizations'").fetchone()
        database.execute(
            "UPDATE entries SET value = ? WHERE module = 'organizations' AND key = ?",
            (value.replace(b"west", b"vest").replace(b"east", b"fast").replace(b"north", b"forth"), key),
        )
    database.close()
    ledgers.start("west")
    process = ledgers.processes["west"]

    async def stopped() -> bool:
        return process.poll() is not None

    await ledgers.eventually(stopped, "west refuses to start")
    assert process.returncode == Corrupt.exit_status
    assert "the stored state of block" in ledgers.log("west")


OWN = {"accounts": b"a" * 32, "nodes": b"n" * 32}
THEIRS = OWN | {"nodes": b"m" * 32}


async def answered(roots: dict[str, bytes]) -> Diverged:
    """What a peer's roots make of a divergence whose header says `THEIRS`."""
    asks, stream = Asks(), Stream("east", dialed=True)

    async def peer() -> None:
        async for message in stream.outgoing():
            told = [service_pb2.ModuleRoot(module=name, root=root) for name, root in roots.items()]
            answer = service_pb2.Answer(id=message.ask.id, module_roots=service_pb2.ModuleRoots(roots=told))
            assert message.ask.module_roots.height == 6
            asks.answered("east", answer)

    answering = asyncio.create_task(peer())
    try:
        return await explained(Diverged(7, tree.app_hash(THEIRS), "another app hash"), OWN, asks, {"east": stream})
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def test_the_module_is_named_by_a_peer_that_can_prove_it() -> None:
    assert "The state of block 6 differs in nodes." in (await answered(THEIRS)).message


@pytest.mark.parametrize("roots", [OWN | {"accounts": b"x" * 32}, {}, OWN], ids=["a lie", "nothing", "our own"])
async def test_a_peer_that_cannot_prove_it_puts_the_blame_on_no_module(roots: dict[str, bytes]) -> None:
    error = await answered(roots)
    assert "no peer could prove which module differs" in error.message
    assert "differs in" not in error.message
