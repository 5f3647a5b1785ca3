"""Real members that lie to a node that catches up: each lie is refused, and the honest member's blocks are taken."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from talkoo_api.ledger.v1 import service_pb2
from talkoo_consensus.encoding import decode_block, decode_commit, encode_block, encode_commit
from talkoo_consensus.types import Data

from talkoo_sim.ledger_processes import Ledgers
from talkoo_sim.scripted_peer import ScriptedPeer, genesis_with_small_members

HONEST = ("north", "east", "south")
Blocks = list[service_pb2.RawBlock]


def in_range(ask: service_pb2.Ask, chain: Blocks) -> Blocks:
    first, last = ask.blocks.from_height, ask.blocks.to_height
    return [service_pb2.RawBlock(height=r.height, block=r.block, commit=r.commit) for r in chain[first - 1 : last]]


def wrong_block(ask: service_pb2.Ask, chain: Blocks) -> Blocks:
    """A transaction more than was decided."""
    blocks = in_range(ask, chain)
    block = decode_block(blocks[0].block)
    blocks[0].block = encode_block(replace(block, data=Data((*block.data.txs, b"mine"))))
    return blocks


def wrong_header(ask: service_pb2.Ask, chain: Blocks) -> Blocks:
    """Another state than was decided."""
    blocks = in_range(ask, chain)
    block = decode_block(blocks[0].block)
    blocks[0].block = encode_block(replace(block, header=replace(block.header, app_hash=bytes(32))))
    return blocks


def wrong_signature(ask: service_pb2.Ask, chain: Blocks) -> Blocks:
    blocks = in_range(ask, chain)
    commit = decode_commit(blocks[0].commit)
    signatures = tuple(replace(sig, signature=bytes(64)) if sig.signature else sig for sig in commit.signatures)
    blocks[0].commit = encode_commit(replace(commit, signatures=signatures))
    return blocks


def other_commit(ask: service_pb2.Ask, chain: Blocks) -> Blocks:
    """The commit of another height, rightly signed."""
    blocks = in_range(ask, chain)
    blocks[0].commit = chain[ask.blocks.from_height].commit
    return blocks


def truncated(ask: service_pb2.Ask, chain: Blocks) -> Blocks:
    blocks = in_range(ask, chain)
    blocks[0].block = blocks[0].block[:-7]
    return blocks


def other_heights(ask: service_pb2.Ask, chain: Blocks) -> Blocks:
    return in_range(ask, chain[1:])


def too_many(ask: service_pb2.Ask, chain: Blocks) -> Blocks:
    return in_range(ask, chain) * 2


def none_at_all(_ask: service_pb2.Ask, _chain: Blocks) -> Blocks:
    """It said that it holds them."""
    return []


Lie = Callable[[service_pb2.Ask, Blocks], Blocks]
LIES: dict[str, tuple[Lie, str]] = {
    "liar-a": (wrong_block, "sent wrong blocks"),
    "liar-b": (wrong_header, "sent wrong blocks"),
    "liar-c": (wrong_signature, "sent wrong blocks"),
    "liar-d": (other_commit, "sent wrong blocks"),
    "liar-e": (truncated, "sent wrong blocks"),
    "liar-f": (other_heights, "sent wrong blocks"),
    "liar-g": (too_many, "sent wrong blocks"),
    "liar-h": (none_at_all, "does not hold block"),
}
SILENT = "liar-silent"
GUIDE = "liar-guide"
"""Says that it has no blocks, and where others are: partly false, for nobody but the true member can answer there."""


def answering(lie: Lie, chain: Blocks) -> Callable[[service_pb2.Ask], service_pb2.Answer | None]:
    def answer(ask: service_pb2.Ask) -> service_pb2.Answer | None:
        if ask.WhichOneof("ask") != "blocks":
            return None
        return service_pb2.Answer(blocks=service_pb2.BlockBatch(blocks=lie(ask, chain)))

    return answer


async def test_each_lie_about_blocks_is_refused_and_the_honest_member_is_found(tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path, genesis_with_small_members(*LIES, SILENT, GUIDE))
    running: list[asyncio.Task[None]] = []
    try:
        for name in HONEST:
            ledgers.write_settings(name, peers=HONEST)
        ledgers.write_settings("west", peers=[])
        ledgers.start(*HONEST)
        await ledgers.reach(6, *HONEST)
        chain = await ledgers.blocks("north")
        peers = {
            name: ScriptedPeer(name, ledgers.genesis, answering(lie, chain), len(chain))
            for name, (lie, _) in LIES.items()
        }
        peers[SILENT] = ScriptedPeer(SILENT, ledgers.genesis, lambda _: None, len(chain))
        ledgers.start("west")
        await ledgers.eventually(lambda: _status(ledgers), "west answers")
        for name, peer in peers.items():
            running.append(asyncio.create_task(peer.run(ledgers.channel(name, "ledger", to="west"))))

        async def all_refused() -> bool:
            told = [f"{name}" in line and why in line for name, (_, why) in LIES.items() for line in _log(ledgers)]
            return sum(told) >= len(LIES) and f"{SILENT} did not answer about blocks" in ledgers.log("west")

        await ledgers.eventually(all_refused, "west has refused every lie")
        assert (await ledgers.height("west")) == 0, "nothing of it was applied"

        guide = ScriptedPeer(GUIDE, ledgers.genesis, _guidance(ledgers), 0)
        running.append(asyncio.create_task(guide.run(ledgers.channel(GUIDE, "ledger", to="west"))))
        await ledgers.reach(len(chain) + 2, "west")
        assert "north" in (await ledgers.client("west").status()).peers
        truth = {raw.height: raw.block for raw in await ledgers.blocks("north")}
        assert all(truth[raw.height] == raw.block for raw in await ledgers.blocks("west") if raw.height in truth)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await ledgers.close()


async def _status(ledgers: Any) -> bool:
    return bool((await ledgers.client("west").status()).chain_id)


def _log(ledgers: Any) -> list[str]:
    return list(ledgers.log("west").splitlines())


def _guidance(ledgers: Any) -> Callable[[service_pb2.Ask], service_pb2.Answer | None]:
    def answer(ask: service_pb2.Ask) -> service_pb2.Answer | None:
        if ask.WhichOneof("ask") != "addresses":
            return None
        told = [("south", ledgers.ports["east"]), ("east", 1), ("stranger", 2), ("north", ledgers.ports["north"])]
        entries = [service_pb2.Address(organization=name, endpoint=f"127.0.0.1:{port}") for name, port in told]
        return service_pb2.Answer(addresses=service_pb2.Addresses(addresses=entries))

    return answer


FLOOD = 20_000
MOST_GROWTH_BYTES = 256 * 1024 * 1024
MESSAGE = service_pb2.PeerMessage


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def floods(height: int) -> dict[str, service_pb2.PeerMessage]:
    """Each is repeated without end. The last three are faults, the others are allowed and cost the node something."""
    ask = service_pb2.Ask(id=1, blocks=service_pb2.BlocksRequest(from_height=1, to_height=height))
    many = [f"org-{n}" for n in range(2_000)]
    return {
        "flood-asks": MESSAGE(ask=ask),
        "flood-steps": MESSAGE(step=service_pb2.RoundStep(height=height, round=0, step=1)),
        "flood-txs": MESSAGE(txs=service_pb2.TxBatch(txs=[b"\xff" * 900])),
        "flood-answers": MESSAGE(answer=service_pb2.Answer(id=2**40, chunk=service_pb2.Chunk(data=bytes(1_000)))),
        "flood-names": MESSAGE(neighbours=service_pb2.Neighbours(organizations=many)),
        "flood-wrong": MESSAGE(ask=service_pb2.Ask(id=1)),
    }


async def test_floods_slow_nobody_down_for_long_and_fill_no_memory(tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path, genesis_with_small_members(*floods(1)))
    running: list[asyncio.Task[None]] = []
    try:
        for name in HONEST:
            ledgers.write_settings(name, peers=HONEST)
        ledgers.start(*HONEST)
        await ledgers.reach(3, *HONEST)
        before = resident_bytes(ledgers.processes["north"].pid)
        peers: dict[str, ScriptedPeer] = {}
        for name, message in floods(3).items():
            peers[name] = ScriptedPeer(name, ledgers.genesis, lambda _: None, 0)
            for _ in range(FLOOD):
                peers[name].say(message)
            running.append(asyncio.create_task(peers[name].run(ledgers.channel(name, "ledger", to="north"))))

        async def faulty_dropped() -> bool:
            return all(peers[name].ended for name in ("flood-answers", "flood-names", "flood-wrong"))

        await ledgers.eventually(faulty_dropped, "those who send what no honest node sends are dropped")
        height = await ledgers.height("east")
        await ledgers.reach(height + 5, *HONEST)
        assert resident_bytes(ledgers.processes["north"].pid) - before < MOST_GROWTH_BYTES
        answered = sum(m.WhichOneof("message") == "answer" for m in peers["flood-asks"].heard)
        assert 0 < answered < FLOOD / 4, "questions are answered at a bounded pace"
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await ledgers.close()
