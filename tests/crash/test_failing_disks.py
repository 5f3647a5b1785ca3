"""Real nodes on a full disk, a broken one, one that cannot fsync: they stop with one clear line, and go on later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from talkoo_api.ledger.v1 import tx_pb2

from talkoo_core.errors import Exhausted, Internal, TalkooError
from talkoo_sim.crashes import RECORDER, genesis_with_recorder
from talkoo_sim.dying_node import Plan
from talkoo_sim.ledger_chain import ORGANIZATIONS, address
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.wire_recorder import WireRecorder

LATER = 15
"""Calls of one kind after which the node has long been deciding."""
FAILURES: list[tuple[Plan, type[TalkooError]]] = [
    (Plan("fail", "ENOSPC", LATER, "pwrite"), Exhausted),
    (Plan("fail", "ENOSPC", 3, "COMMIT"), Exhausted),
    (Plan("fail", "EIO", LATER, "fdatasync"), Internal),
    (Plan("fail", "EIO", 3, "COMMIT"), Internal),
    (Plan("fail", "EIO", 3, "fsync"), Internal),
]
FROM_THE_START = [Plan("fail", "ENOSPC", 1, "pwrite"), Plan("fail", "EIO", 1)]


def start(ledgers: Ledgers, name: str, plan: Plan) -> None:
    ledgers.launcher = ("-m", "talkoo_sim.dying_node", plan.encoded())
    ledgers.start(name)
    ledgers.launcher = ("-m", "talkoo_ledger")


@pytest.fixture
async def ledgers(tmp_path: Path) -> AsyncIterator[Ledgers]:
    federation = Ledgers(tmp_path, genesis_with_recorder())
    recorder = WireRecorder(federation, RECORDER)
    listening = asyncio.create_task(recorder.run(*ORGANIZATIONS))
    try:
        federation.start(*ORGANIZATIONS)
        await federation.reach(2, *ORGANIZATIONS)
        yield federation
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await federation.close()
    assert recorder.heard
    assert recorder.twice() == []


async def stops(ledgers: Ledgers, name: str, plan: Plan) -> tuple[int, list[str]]:
    """Exit status and what is said as an error by a node that runs into a failing disk."""
    ledgers.stop(name)
    said_before = len(ledgers.log(name))
    start(ledgers, name, plan)
    process = ledgers.processes[name]

    async def stopped() -> bool:
        return process.poll() is not None

    await ledgers.eventually(stopped, f"{name} stops on {plan}")
    lines = ledgers.log(name)[said_before:].splitlines()
    return process.returncode, [line for line in lines if line.startswith(("error: ", "Traceback"))]


async def goes_on(ledgers: Ledgers, name: str) -> None:
    """The disk is well again: the node comes back to where the others are by then."""
    alice = ledgers.client("north" if name != "north" else "south", "alice")
    result = await alice.submit(tx_pb2.Transfer(to=address("bob"), amount_utlk=1))
    ledgers.start(name)
    await ledgers.reach(result.height + 1, name)


async def test_a_node_stops_with_one_line_and_goes_on_when_its_disk_is_well(ledgers: Ledgers) -> None:
    for place, (plan, family) in enumerate(FAILURES):
        name = ORGANIZATIONS[place % len(ORGANIZATIONS)]
        status, errors = await stops(ledgers, name, plan)
        assert status == family.exit_status, (plan, errors)
        assert len(errors) == 1, (plan, errors)
        assert "disk" in errors[0], (plan, errors)
        await goes_on(ledgers, name)


async def test_a_node_that_starts_on_a_failing_disk_says_so(ledgers: Ledgers) -> None:
    for plan in FROM_THE_START:
        status, errors = await stops(ledgers, "east", plan)
        assert status in (Exhausted.exit_status, Internal.exit_status), (plan, errors)
        assert len(errors) == 1, (plan, errors)
        assert "disk" in errors[0], (plan, errors)
    await goes_on(ledgers, "east")


async def test_writes_that_take_one_byte_at_a_time_are_finished(ledgers: Ledgers) -> None:
    ledgers.stop("west")
    start(ledgers, "west", Plan("short", "each", 1))
    height = await ledgers.height("north")
    await ledgers.reach(height + 3, "west")
    ledgers.stop("west")
    await goes_on(ledgers, "west")
