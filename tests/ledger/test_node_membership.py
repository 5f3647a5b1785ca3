"""Membership with real nodes: a fifth organization joins, changes its key, and one of the founders leaves."""

from __future__ import annotations

from typing import Any

from talkoo_api.ledger.v1 import state_pb2, tx_pb2
from talkoo_consensus.encoding import decode_block, decode_commit
from talkoo_consensus.types import BlockIdFlag
from talkoo_ledger.members import possession_bytes

from talkoo_sim.ledger_chain import CHAIN_ID, address, key_of, make_genesis
from talkoo_sim.ledger_processes import Ledgers

FIFTH = "fifth"
BOND_UTLK = 900_000_000


def possession(key: str) -> bytes:
    return key_of(key).sign(possession_bytes(CHAIN_ID, FIFTH, address(FIFTH)))


async def signers(ledgers: Ledgers, height: int) -> set[bytes]:
    """Addresses of those whose precommits for a block north holds."""
    raw = (await ledgers.blocks("north"))[height - 1]
    commit = decode_commit(raw.commit)
    assert decode_block(raw.block).header.height == height
    return {sig.validator_address for sig in commit.signatures if sig.flag is BlockIdFlag.COMMIT}


async def signs(ledgers: Ledgers, key: str) -> None:
    """Wait until a block is signed with this key."""

    async def signed() -> bool:
        height = await ledgers.height("north")
        return key_of(key).public.address in await signers(ledgers, height)

    await ledgers.eventually(signed, f"a block is signed with {key}")


async def test_a_fifth_organization_joins_votes_rotates_its_key_and_a_founder_leaves(tmp_path: Any) -> None:
    ledgers = Ledgers(tmp_path, make_genesis(epoch_blocks=5))
    try:
        await join_rotate_and_leave(ledgers)
    finally:
        await ledgers.close()


async def join_rotate_and_leave(ledgers: Ledgers) -> None:
    ledgers.start()
    await ledgers.reach(2)
    await ledgers.client("north", "alice").submit(tx_pb2.Transfer(to=address(FIFTH), amount_utlk=950_000_000))
    # Its node is a follower until the members have consented; its owner sends what it has to say through it.
    ledgers.provision(FIFTH, "north")
    ledgers.start(FIFTH)
    owner = ledgers.client("north", FIFTH)
    await owner.submit(
        tx_pb2.ApplyMembership(
            name=FIFTH,
            owner_key=key_of(FIFTH).public.raw,
            validator_key=key_of("fifth-consensus").public.raw,
            proof_of_possession=possession("fifth-consensus"),
            scheduler=address("fifth-scheduler"),
            validator=address("fifth-validator"),
        )
    )
    for member in ("north", "east", "south"):
        key = key_of("fifth-consensus").public.raw
        await ledgers.client(member, member).submit(tx_pb2.ApproveMember(name=FIFTH, validator_key=key))
    await owner.submit(tx_pb2.Bond(subject=FIFTH, amount_utlk=BOND_UTLK))
    await signs(ledgers, "fifth-consensus")

    rotated = await owner.submit(
        tx_pb2.RotateKey(
            organization=FIFTH,
            validator_key=key_of("fifth-second").public.raw,
            proof_of_possession=possession("fifth-second"),
        )
    )
    await ledgers.reach(rotated.height + 2, FIFTH)
    ledgers.stop(FIFTH)
    ledgers.write_consensus_key(FIFTH, "fifth-second")
    ledgers.start(FIFTH)
    await signs(ledgers, "fifth-second")

    left = await ledgers.client("west", "west").submit(tx_pb2.LeaveFederation(organization="west"))
    await ledgers.reach(left.height + 5, "north", "east", "south", FIFTH)
    assert key_of("west-consensus").public.address not in await signers(ledgers, left.height + 4)
    # With east down as well, three of the four that are left are enough: the newcomer counts.
    ledgers.stop("west", "east")
    await ledgers.reach((await ledgers.height("north")) + 3, "north", "south", FIFTH)
    member = await ledgers.client(FIFTH).get("organizations", FIFTH, state_pb2.Organization)
    assert member.power >= BOND_UTLK
