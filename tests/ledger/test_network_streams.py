"""Real nodes that find each other, that only dial out, and that pass on what others lack."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, tx_pb2
from talkoo_consensus.encoding import decode_block
from talkoo_consensus.types import BlockIdFlag

from talkoo_sim.ledger_chain import ORGANIZATIONS, address

INSIDE = ("south", "west")
"""Behind firewalls: they dial out and nobody can dial them."""
BETWEEN = ("north", "east")


def pay() -> tx_pb2.Transfer:
    return tx_pb2.Transfer(to=address("bob"), amount_utlk=1)


def with_two_inside(ledgers: Any) -> None:
    for name in BETWEEN:
        ledgers.write_settings(name, peers=BETWEEN)
    for name in INSIDE:
        ledgers.write_settings(name, peers=BETWEEN, outbound_only=True)


async def connected(ledgers: Any, name: str, others: set[str], without: Collection[str] = ()) -> None:
    async def so() -> bool:
        peers = set((await ledgers.client(name).status()).peers)
        return others <= peers and not peers & set(without)

    await ledgers.eventually(so, f"{name} is connected with {sorted(others)}")


def signers(raw: service_pb2.RawBlock) -> int:
    """Of the block before it: its own commit ends with the first two thirds."""
    return sum(sig.flag is BlockIdFlag.COMMIT for sig in decode_block(raw.block).last_commit.signatures)


async def all_sign(ledgers: Any, name: str, count: int) -> None:
    async def so() -> bool:
        return any(signers(raw) == count for raw in (await ledgers.blocks(name))[-20:])

    await ledgers.eventually(so, f"{name} holds a commit of {count} members")


async def test_two_members_that_only_dial_out_take_full_part(ledgers: Any) -> None:
    with_two_inside(ledgers)
    ledgers.start()
    await ledgers.reach(3)
    for name in INSIDE:
        await connected(ledgers, name, set(BETWEEN), without=set(INSIDE))
    # Each hears the other's votes and transactions through those between.
    for name in INSIDE:
        await all_sign(ledgers, name, 4)
    alice = ledgers.client("south", "alice")
    paid = await alice.submit(pay())
    assert (await ledgers.client("west").wait_tx(paid.hash)).height == paid.height
    proposers = set()

    async def everybody_proposes() -> bool:
        stub = service_pb2_grpc.LedgerStub(ledgers.channel("west"))  # type: ignore[no-untyped-call]
        async for block in stub.Follow(service_pb2.FollowRequest(from_height=1)):
            proposers.add(block.proposer)
            if proposers == set(ORGANIZATIONS):
                return True
        return False

    await ledgers.eventually(everybody_proposes, "blocks of all four are decided")


async def test_one_between_two_that_only_dial_out_is_enough_and_the_other_catches_up(ledgers: Any) -> None:
    """With east dead, south and west decide with north alone between them: every vote of theirs is passed on by it."""
    with_two_inside(ledgers)
    ledgers.start()
    await ledgers.reach(2)
    ledgers.stop("east")
    height = await ledgers.height("north")
    await ledgers.reach(height + 5, "north", *INSIDE)
    paid = await ledgers.client("west", "alice").submit(pay())
    await ledgers.reach(paid.height, "south")
    ledgers.start("east")
    await ledgers.reach(paid.height + 1, "east")
    ledgers.stop("south")
    ledgers.start("south")
    await connected(ledgers, "south", set(BETWEEN))
    await ledgers.reach((await ledgers.height("north")) + 2)


async def test_blocks_are_fetched_from_members_that_only_dial_out(ledgers: Any) -> None:
    """North was away; of those that are ahead it can dial nobody, for they all dial it."""
    others = ("east", "south", "west")
    ledgers.write_settings("north", peers=[])
    ledgers.write_settings("east", peers=["north"])
    for name in INSIDE:
        ledgers.write_settings(name, peers=["east", "north"], outbound_only=True)
    ledgers.start(*others)
    await ledgers.reach(4, *others)
    ledgers.stop("east")
    # East holds the only way between the two; now north is that way, and has everything to learn from them.
    ledgers.start("north")
    await ledgers.reach(6, "north", *INSIDE)
    await connected(ledgers, "north", set(INSIDE))


async def test_one_seed_leads_to_everybody_and_the_book_is_remembered(ledgers: Any) -> None:
    ledgers.write_settings("north", peers=[])
    for name in ("east", "south", "west"):
        ledgers.write_settings(name, peers=["north"])
    ledgers.start()
    for name in ORGANIZATIONS:
        await connected(ledgers, name, set(ORGANIZATIONS) - {name})
    book = Path(ledgers.folder) / "west" / "state" / "addresses.json"

    async def kept() -> bool:
        entries = json.loads(book.read_bytes())["entries"] if book.exists() else []
        return {"north", "east", "south"} <= {e["organization"] for e in entries}

    await ledgers.eventually(kept, "west's address book is on disk")
    ledgers.stop("north", "west")
    ledgers.start("west")  # its only seed is dead
    await connected(ledgers, "west", {"east", "south"})
    height = await ledgers.height("east")
    await ledgers.reach(height + 3, "east", "south", "west")


async def test_a_damaged_address_book_is_told_and_begun_anew(ledgers: Any) -> None:
    book = Path(ledgers.folder) / "west" / "state" / "addresses.json"
    book.parent.mkdir(parents=True, exist_ok=True)
    book.write_bytes(b'{"version":1,"entries":[{"organization":"north","endpo')
    ledgers.start("north", "east", "west")
    await ledgers.reach(2, "west")
    assert "addresses.json is damaged" in ledgers.log("west")
