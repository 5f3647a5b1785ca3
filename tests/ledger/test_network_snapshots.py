"""A new member begins with a snapshot, among members that offer false ones and forge headers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from talkoo_api.ledger.v1 import service_pb2, tx_pb2
from talkoo_consensus.encoding import (
    decode_block,
    encode_commit,
    header_hash,
    validators_hash,
    vote_sign_bytes,
)
from talkoo_consensus.types import BlockId, BlockIdFlag, Commit, CommitSig, SignedType, Vote
from talkoo_consensus.validators import Validator, ValidatorSet
from talkoo_ledger.answers import light_block_message
from talkoo_ledger.application import Application
from talkoo_ledger.snapshots import chunks_of

from talkoo_sim.ledger_chain import address, key_of
from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.scripted_peer import ScriptedPeer, genesis_with_small_members

HONEST = ("north", "east", "south")
TAKEN_AT = 20
"""South's only snapshot that counts; the others take none."""
LIES = (
    "a-forger: sent a header",
    "liar-chunk: sent a wrong chunk",
    "liar-gone has chunk 0 no more",
    "liar-root: offered a snapshot of block 22 that is not of this chain",
    "liar-shape: offered a wrong snapshot",
    "liar-state: sent a snapshot of block 22 with a wrong state",
)
Answering = Callable[[service_pb2.Ask], service_pb2.Answer | None]


def offer(height: int, metadata: bytes, *, hash_: bytes = b"") -> service_pb2.Answer:
    info = service_pb2.SnapshotInfo(
        height=height,
        format=1,
        chunks=len(metadata) // 32 - 1,
        hash=hash_ or hashlib.sha256(metadata).digest(),
        metadata=metadata,
    )
    return service_pb2.Answer(snapshots=service_pb2.Snapshots(snapshots=[info]))


def offering(answer: service_pb2.Answer, chunk: bytes) -> Answering:
    def answers(ask: service_pb2.Ask) -> service_pb2.Answer | None:
        kind = ask.WhichOneof("ask")
        if kind == "snapshots":
            return service_pb2.Answer(snapshots=answer.snapshots)
        if kind == "light_block":
            return service_pb2.Answer(light_block=service_pb2.LightBlock())
        if kind == "chunk":
            return service_pb2.Answer(chunk=service_pb2.Chunk(data=chunk))
        return None

    return answers


def ahead_once_asked(peer: ScriptedPeer, height: int) -> Answering:
    """The node looks for snapshots as soon as somebody is far ahead. That shall not be a liar while it is alone."""
    answer = peer.answer

    def answers(ask: service_pb2.Ask) -> service_pb2.Answer | None:
        if ask.WhichOneof("ask") == "snapshots":
            peer.height = height
            peer.say_height()
        return answer(ask)

    return answers


def forging(blocks: list[service_pb2.RawBlock]) -> Answering:
    """Headers with another state root, signed by validators that it made up, of which each has its own key."""
    keys = [key_of(f"forged {n}") for n in range(3)]
    validators = ValidatorSet.create([Validator.of(key.public.raw, 10) for key in keys])
    by_address = {key.public.address: key for key in keys}
    chain_id = decode_block(blocks[0].block).header.chain_id

    def answers(ask: service_pb2.Ask) -> service_pb2.Answer | None:
        if ask.WhichOneof("ask") == "snapshots":
            return service_pb2.Answer(snapshots=service_pb2.Snapshots())
        if ask.WhichOneof("ask") != "light_block":
            return None
        height = ask.light_block.height
        own = validators_hash(validators)
        header = replace(
            decode_block(blocks[height - 1].block).header,
            app_hash=b"f" * 32,
            validators_hash=own,
            next_validators_hash=own,
            proposer_address=validators.proposer_address,
        )
        block_id = BlockId(header_hash(header), 1, bytes(32))
        signatures = []
        for index, validator in enumerate(validators.validators):
            vote = Vote(SignedType.PRECOMMIT, height, 0, block_id, 1, validator.address, index, b"")
            signature = by_address[validator.address].sign(vote_sign_bytes(chain_id, vote))
            signatures.append(CommitSig(BlockIdFlag.COMMIT, validator.address, 1, signature))
        return service_pb2.Answer(
            light_block=light_block_message(
                header, encode_commit(Commit(height, 0, block_id, tuple(signatures))), validators
            )
        )

    return answers


def false_state(genesis: Any, app_hash: bytes) -> tuple[bytes, bytes]:
    """Metadata with the chain's true root, and a chunk of a state in which the liar is rich."""
    application = Application()
    application.init_chain(genesis)
    entries = [(module, key, value) for module, key, value in application.snapshot() if key != address("alice")]
    (chunk,) = chunks_of(entries)
    return app_hash + hashlib.sha256(chunk).digest(), chunk


async def test_a_new_member_begins_with_the_true_snapshot_among_false_ones(tmp_path: Path) -> None:
    liars = ("a-forger", "liar-chunk", "liar-gone", "liar-root", "liar-shape", "liar-state")
    ledgers = Ledgers(tmp_path, genesis_with_small_members(*liars))
    running: list[asyncio.Task[None]] = []
    try:
        for name in HONEST:
            interval = TAKEN_AT if name == "south" else 0
            ledgers.write_settings(name, peers=HONEST, snapshot_interval_blocks=interval)
        ledgers.write_settings("west", peers=["north", "south"], snapshot_sync_blocks=TAKEN_AT)
        ledgers.start(*HONEST)
        paid = await ledgers.client("north", "alice").submit(tx_pb2.Transfer(to=address("bob"), amount_utlk=7))
        await ledgers.reach(TAKEN_AT + 6, *HONEST)
        ledgers.stop("east")  # nothing is decided any more until west is there
        blocks = await ledgers.blocks("north")
        root = decode_block(blocks[TAKEN_AT + 2].block).header.app_hash  # of the state after TAKEN_AT + 2
        metadata, chunk = false_state(ledgers.genesis, root)
        above = TAKEN_AT + 2
        scripts: dict[str, Answering] = {
            "a-forger": forging(blocks),
            "liar-chunk": offering(offer(above, root + bytes(32)), b"not what its hash says"),
            "liar-gone": offering(offer(above, root + bytes(31) + b"g"), b""),
            "liar-root": offering(offer(above, bytes(64)), b""),
            "liar-shape": offering(offer(above, root + bytes(32), hash_=bytes(32)), b""),
            "liar-state": offering(offer(above, metadata), chunk),
        }
        ledgers.stop("north", "south")
        ledgers.start("west")

        async def answers() -> bool:
            return bool((await ledgers.client("west").status()).chain_id)

        async def hears(*names: str) -> bool:
            return set(names) <= set((await ledgers.client("west").status()).peers)

        await ledgers.eventually(answers, "west answers")
        for name in liars:
            peer = ScriptedPeer(name, ledgers.genesis, scripts[name], height=0)
            peer.answer = ahead_once_asked(peer, len(blocks))
            running.append(asyncio.create_task(peer.run(ledgers.channel(name, "ledger", to="west"))))
        await ledgers.eventually(lambda: hears(*liars), "west hears the liars")
        ledgers.start("south")
        await ledgers.eventually(lambda: hears("south"), "west hears south")
        ledgers.start("north")  # with south more than a third, whom west asks whose turn it is to propose
        await ledgers.reach(len(blocks) + 2, "west", "north", "south")
        log = ledgers.log("west")
        assert f"began with the snapshot of block {TAKEN_AT} of south" in log
        for lie in LIES:
            assert lie in log, lie
        west = ledgers.client("west")
        assert (await west.account(address("bob"))) == (await ledgers.client("north").account(address("bob")))
        assert paid.height < TAKEN_AT
        # What west decides now rests on the validators' turns that it took over.
        again = await ledgers.client("west", "alice").submit(tx_pb2.Transfer(to=address("bob"), amount_utlk=1))
        await ledgers.reach(again.height, "north", "south", "west")
        ledgers.stop("west")
        ledgers.start("west")
        await ledgers.reach(again.height + 2, "west")
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await ledgers.close()
