"""Four real ledger nodes: blocks go on without one, stop without two, and nothing final is ever lost."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
from typing import Any

from talkoo_api.ledger.v1 import tx_pb2

from talkoo_core.errors import TalkooError
from talkoo_sim.ledger_chain import ORGANIZATIONS, address

QUIET_S = 2.0
"""So long nothing may be decided without a quorum: ten times the interval of empty blocks."""
CRASHES = 5
MOST_BYTES = 32 * 1024
"""More than the log that tells why the node stopped, less than its blocks."""


def pay(amount_utlk: int = 1) -> tx_pb2.Transfer:
    return tx_pb2.Transfer(to=address("bob"), amount_utlk=amount_utlk)


def has_no_fork(chains: list[list[Any]]) -> bool:
    """At every height all nodes that have it have the same block and the same results."""
    return all(
        len({(raw.block, *(r.SerializeToString() for r in raw.results)) for raw in same}) == 1
        for same in zip(*chains, strict=False)
    )


async def test_blocks_go_on_without_one_which_catches_up_and_its_followers_miss_nothing(ledgers: Any) -> None:
    ledgers.start()
    await ledgers.reach(2)
    alice = ledgers.client("north", "alice")
    heights: list[int] = []

    async def follow() -> None:
        async for block in ledgers.client("south").follow(1):
            heights.append(block.height)

    following = asyncio.create_task(follow())
    before = await alice.submit(pay())
    await ledgers.reach(before.height, "south")
    ledgers.stop("south")
    while_away = [await alice.submit(pay()) for _ in range(3)]
    await ledgers.reach(while_away[-1].height + 2, "north", "east", "west")
    ledgers.start("south")
    await ledgers.reach((await alice.status()).height, "south")
    south = ledgers.client("south")
    for result in while_away:
        assert (await south.wait_tx(result.hash)).height == result.height

    async def followed() -> bool:
        return bool(heights) and heights[-1] >= int(while_away[-1].height)

    await ledgers.eventually(followed, "the follower of the restarted node sees all blocks")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert heights == list(range(1, len(heights) + 1))
    assert has_no_fork([await ledgers.blocks(name) for name in ORGANIZATIONS])


async def test_without_two_nothing_is_decided_and_with_them_again_everything_goes_on(ledgers: Any) -> None:
    ledgers.start()
    await ledgers.reach(2)
    alice = ledgers.client("north", "alice")
    first = await alice.submit(pay())
    ledgers.stop("south", "west")
    waiting = await alice.submit(pay(), wait=False)
    # What was decided when the two died may still arrive; then there must be silence.
    loop = asyncio.get_running_loop()
    seen = [0, loop.time()]

    async def silent() -> bool:
        height = (await alice.status()).height
        if height != seen[0]:
            seen[:] = [height, loop.time()]
        return loop.time() - seen[1] >= QUIET_S

    await ledgers.eventually(silent, "the chain stands still")
    ledgers.start("south", "west")
    final = await alice.wait_tx(waiting.hash, timeout_s=40)
    assert final.height > seen[0]
    assert final.code == 0
    await ledgers.reach(final.height)
    assert (await ledgers.client("west").wait_tx(first.hash)).height == first.height
    assert has_no_fork([await ledgers.blocks(name) for name in ORGANIZATIONS])


async def test_kills_at_random_fork_nothing_and_lose_no_final_transaction(ledgers: Any) -> None:
    ledgers.start()
    await ledgers.reach(1)
    chance = random.Random(20261123)
    final: list[Any] = []

    async def transfer(user: str, organization: str) -> None:
        client = ledgers.client(organization, user)
        while True:
            try:
                final.append(await client.submit(pay(), timeout_s=20))
            except TalkooError:
                await asyncio.sleep(0.05)  # its node is down; the next attempt reads the nonce anew

    transfers = [asyncio.create_task(transfer("alice", "north")), asyncio.create_task(transfer("bob", "east"))]
    for _ in range(CRASHES):
        goal = len(final) + 2

        async def more(goal: int = goal) -> bool:
            return len(final) >= goal

        await ledgers.eventually(more, "transfers become final between crashes")
        await asyncio.sleep(chance.random() * 0.3)  # to hit another moment of a block each time
        victim = chance.choice(ORGANIZATIONS)
        ledgers.stop(victim)
        ledgers.start(victim)
    for task in transfers:
        task.cancel()
    await asyncio.gather(*transfers, return_exceptions=True)
    await ledgers.reach(max(result.height for result in final) + 1)
    chains = [await ledgers.blocks(name) for name in ORGANIZATIONS]
    assert has_no_fork(chains)
    for chain in chains:
        held = {result.hash: raw.height for raw in chain for result in raw.results if result.code == 0}
        assert all(held[result.hash] == result.height for result in final)
    assert not [name for name in ORGANIZATIONS if "voted twice" in ledgers.log(name)]


async def test_a_disk_that_takes_no_more_stops_the_node_and_loses_nothing(ledgers: Any) -> None:
    """The kernel refuses to let the node's larger files grow, as a full or broken disk does."""
    ledgers.start()
    await ledgers.reach(2)
    alice = ledgers.client("north", "alice")
    kept = await alice.submit(pay())
    await ledgers.reach(kept.height, "south")
    process = ledgers.processes["south"]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (MOST_BYTES, MOST_BYTES))

    async def stopped() -> bool:
        return process.poll() is not None

    await ledgers.eventually(stopped, "the node stops")
    assert process.returncode not in (0, -signal.SIGXFSZ)
    errors = [line for line in ledgers.log("south").splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ledgers.log("south")
    assert "disk" in errors[0]
    later = await alice.submit(pay())
    ledgers.start("south")
    await ledgers.reach(later.height, "south")
    assert (await ledgers.client("south").wait_tx(kept.hash)).height == kept.height
