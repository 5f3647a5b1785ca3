"""The real CometBFT, four of it, over the same ledger as our own engine."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, tx_pb2
from talkoo_consensus.chain import check_block
from talkoo_consensus.encoding import block_id_of, decode_block, decode_commit, vote_sign_bytes
from talkoo_consensus.evidence import PastHeight, form
from talkoo_consensus.types import BlockId, ConflictingVotes, SignedType, Vote
from talkoo_consensus.verify import verify_commit
from talkoo_ledger.executor import Executor
from talkoo_ledger.genesis import Genesis
from talkoo_ledger.ics23 import ProofOp, verify_state
from talkoo_ledger.rpc.documents import evidence_document
from talkoo_ledger.state import State

from talkoo_core.errors import Corrupt
from talkoo_runtime.clock import SystemClock
from talkoo_runtime.transactions import sign_transaction, transaction_hash
from talkoo_sim.comet_processes import CometLedgers
from talkoo_sim.dying_node import Plan
from talkoo_sim.ledger_chain import address, key_of, make_genesis
from talkoo_sim.ledger_processes import Ledgers

Federation = Callable[..., CometLedgers]
KILLS = int(os.environ.get("TALKOO_COMET_KILLS", "4"))
"""How often processes are killed in one test; more for a longer run."""
CALL_S = 60.0
"""For one call or the end of a process, on a machine that is busy with other things."""
BLOCKS_TO_THE_HALT = 25
"""More than are decided until all members have been stopped."""


def timeless_genesis() -> Genesis:
    """A ledger in which nothing but transactions changes the state: no emission, no fees for the proposer."""
    return make_genesis(emission_per_epoch_utlk=0, min_fee_utlk=0, epoch_blocks=1_000_000)


def transfers(genesis: Genesis, count: int, fee_utlk: int, first: int = 0, sender: str = "alice") -> list[bytes]:
    key = key_of(sender)
    return [
        sign_transaction(
            key, genesis.chain_id, nonce, fee_utlk, tx_pb2.Transfer(to=address("bob"), amount_utlk=nonce + 1)
        )
        for nonce in range(first, first + count)
    ]


async def send(ledgers: Ledgers, name: str, txs: list[bytes]) -> None:
    """All of them are taken."""
    stub = service_pb2_grpc.LedgerStub(ledgers.channel(name))  # type: ignore[no-untyped-call]
    response = await stub.BroadcastMany(service_pb2.BroadcastManyRequest(txs=txs), wait_for_ready=True, timeout=CALL_S)
    assert not response.refused, response.refused[0]


async def final(ledgers: Ledgers, name: str, txs: list[bytes]) -> list[service_pb2.TxResult]:
    """Their results, as this node knows them; one that failed is an error."""
    client, results = ledgers.client(name), []
    for tx in txs:
        tx_hash = transaction_hash(tx)
        results.append(
            await ledgers.eventually(lambda h=tx_hash: client.wait_tx(h, timeout_s=20), f"{name} knows a result")
        )
    return results


def replayed(genesis: Genesis, folder: Path, blocks: list[service_pb2.RawBlock]) -> Executor:
    """CometBFT's blocks through our engine's own checks and executor: every header, commit and root must be ours."""
    executor = Executor(genesis, folder, SystemClock())
    for raw in blocks:
        block, commit = decode_block(raw.block), decode_commit(raw.commit)
        block_id = block_id_of(block)
        check_block(executor.chain, block, executor.evidence.check_decided)
        verify_commit(genesis.chain_id, executor.chain.validators, block_id, raw.height, commit)
        executor.execute(commit.round, block_id, block, commit)
        assert list(executor.store.block(raw.height).results) == list(raw.results), f"results of block {raw.height}"
    return executor


def rpc(ledgers: CometLedgers, name: str, call: str) -> Any:
    with urllib.request.urlopen(f"{ledgers.rpc_url(name)}/{call}", timeout=CALL_S) as response:
        return json.load(response)["result"]


def comet_of(ledgers: CometLedgers, name: str) -> psutil.Process | None:
    """The CometBFT below a node's process."""
    home = str(ledgers.state_folder(name) / "comet")
    for child in psutil.Process(ledgers.processes[name].pid).children(recursive=True):
        if home in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
            return child
    return None


async def test_both_engines_make_the_same_state_of_the_same_transactions(
    federation: Federation, tmp_path: Path
) -> None:
    """Every block of CometBFT passes our engine's rules with equal roots; both chains end in the same state."""
    genesis = timeless_genesis()
    txs = transfers(genesis, 60, 0) + transfers(genesis, 20, 0, sender="bob")
    under_comet = federation(genesis=genesis)
    (tmp_path / "own").mkdir()
    own = Ledgers(tmp_path / "own", genesis=genesis)
    roots = []
    try:
        for ledgers in (under_comet, own):
            ledgers.start()
            await ledgers.reach(1)
            await send(ledgers, "north", txs[:60])
            await send(ledgers, "east", txs[60:])
            assert {result.code for result in await final(ledgers, "south", txs)} == {0}
            blocks = await ledgers.blocks("west")
            executor = replayed(genesis, tmp_path / f"replay-{len(roots)}", blocks)
            roots.append({m: executor.application.query(m, "", prove=True).module_root for m in State.MODULES})
            executor.store.close()
    finally:
        await own.close()
    assert roots[0] == roots[1]


async def test_values_are_proven_over_cometbfts_own_rpc(federation: Federation) -> None:
    """`abci_query` with proofs, presence and absence, against the state root in the next header."""
    ledgers = federation()
    ledgers.start()
    txs = transfers(ledgers.genesis, 3, 100)
    await ledgers.reach(1)
    await send(ledgers, "north", txs)
    await final(ledgers, "north", txs)
    for key in (address("bob"), "tlk1nobody"):
        data = f"0x{key.encode().hex()}"
        query = f'abci_query?path="/store/accounts/key"&data={data}&prove=true'
        answer = rpc(ledgers, "north", query)["response"]
        height = int(answer["height"])
        await ledgers.reach(height + 1, "north")
        header = rpc(ledgers, "north", f"commit?height={height + 1}")["signed_header"]["header"]
        value = base64.b64decode(answer["value"] or "") or None
        ops = [
            ProofOp(op["type"], base64.b64decode(op["key"]), base64.b64decode(op["data"]))
            for op in answer["proofOps"]["ops"]
        ]
        verify_state(bytes.fromhex(header["app_hash"]), "accounts", key, value, ops)
        assert (value is not None) == (key == address("bob"))
        with pytest.raises(Corrupt):
            verify_state(bytes.fromhex(header["app_hash"]), "accounts", key, b"another value", ops)
    hash_ = transaction_hash(txs[0]).hex()
    found = rpc(ledgers, "north", f"tx?hash=0x{hash_}")
    assert base64.b64decode(found["tx"]) == txs[0]
    assert found["tx_result"]["code"] == 0

    child = comet_of(ledgers, "west")
    assert child is not None
    ledgers.stop("west", how=signal.SIGKILL)

    async def ended() -> bool:
        return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE

    await ledgers.eventually(ended, "CometBFT ends with its ledger")


async def test_a_node_goes_on_when_its_cometbft_or_itself_is_killed(federation: Federation, tmp_path: Path) -> None:
    """Killed −9 at random moments under load: every transaction a living node took becomes final, all agree."""
    chance = random.Random(7)
    ledgers = federation()
    ledgers.start()
    await ledgers.reach(2)
    sent: list[bytes] = []
    for number in range(KILLS):
        victim = chance.choice(["south", "west"])
        batch = transfers(ledgers.genesis, 10, 100, first=len(sent))
        await send(ledgers, "north", batch)
        sent += batch
        await asyncio.sleep(chance.random() * 0.4)  # the moment of the kill is what is random here
        if number % 2:
            child = comet_of(ledgers, victim)
            assert child is not None
            child.send_signal(signal.SIGKILL)
        else:
            ledgers.stop(victim)
            ledgers.start(victim)
        await ledgers.client(victim, "bob").submit(tx_pb2.Transfer(to=address("alice"), amount_utlk=1), timeout_s=60)
    for name in ledgers.names:
        assert {result.code for result in await final(ledgers, name, sent)} == {0}
    height = min([(await ledgers.height(name)) for name in ledgers.names])
    chains = [[raw for raw in await ledgers.blocks(name) if raw.height <= height] for name in ledgers.names]
    assert all([raw.block for raw in chain] == [raw.block for raw in chains[0]] for chain in chains)
    replayed(ledgers.genesis, tmp_path / "replay", chains[0]).store.close()


async def test_a_ledger_killed_while_it_commits_a_block_is_given_what_it_lacks(federation: Federation) -> None:
    """Between CometBFT's FinalizeBlock and its Commit, in the middle of ours, and before CometBFT knows of it."""
    ledgers = federation()
    ledgers.start()
    await ledgers.reach(1)

    async def died() -> bool:
        return ledgers.processes["west"].poll() == -signal.SIGKILL

    sent: list[bytes] = []
    for how in ("before", "during", "after"):
        ledgers.stop("west")
        plan = Plan("kill", how, 4, only="COMMIT")
        ledgers.launcher = ("-m", "talkoo_sim.dying_node", plan.encoded())
        ledgers.start("west")
        txs = transfers(ledgers.genesis, 5, 100, first=len(sent))
        await send(ledgers, "north", txs)
        sent += txs
        await ledgers.eventually(died, f"west is killed {how} a COMMIT")
        ledgers.launcher = ("-m", "talkoo_ledger")
        ledgers.start("west")
        assert {result.code for result in await final(ledgers, "west", txs)} == {0}
    height = await ledgers.height("north")
    await ledgers.reach(height, "west")
    chains = [[raw.block for raw in await ledgers.blocks(name)][:height] for name in ("west", "north")]
    assert chains[0] == chains[1]


async def test_a_double_vote_that_cometbft_proves_is_punished_by_the_ledger(
    federation: Federation, tmp_path: Path
) -> None:
    """CometBFT verifies the evidence, puts it into a block, and our rules take the validator's stake and power."""
    ledgers = federation()
    ledgers.start()
    await ledgers.reach(3)
    before = replayed(ledgers.genesis, tmp_path / "before", await ledgers.blocks("north"))
    validators = before.store.validators(2)
    assert validators is not None
    decided = before.store.decided(2)
    assert decided is not None
    before.store.close()
    key = key_of("west-consensus")
    found = validators.find(key.public.address)
    assert found is not None
    votes = [
        Vote(SignedType.PRECOMMIT, 2, 0, BlockId(byte * 32, 1, byte * 32), time.time_ns(), found[1].address, found[0])
        for byte in (b"a", b"b")
    ]
    signed = [replace(v, signature=key.sign(vote_sign_bytes(ledgers.genesis.chain_id, v))) for v in votes]
    past = PastHeight(decode_block(decided[0]).header.time_ns, validators)
    evidence = form(ConflictingVotes(*signed), past)
    assert evidence is not None
    told = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "broadcast_evidence",
        "params": {"evidence": evidence_document(evidence)},
    }
    request = urllib.request.Request(ledgers.rpc_url("north"), json.dumps(told).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=CALL_S) as response:
        assert "error" not in json.load(response)

    async def powerless() -> bool:
        validators = rpc(ledgers, "south", "validators")["validators"]
        return key.public.address.hex().upper() not in {each["address"] for each in validators}

    await ledgers.eventually(powerless, "west is no validator any more")
    blocks = await ledgers.blocks("east")
    assert [piece for raw in blocks for piece in decode_block(raw.block).evidence] == [evidence]
    executor = replayed(ledgers.genesis, tmp_path / "after", blocks)
    west = next(each for each in executor.application.state.organizations.all() if each.name == "west")
    assert west.power == 0
    assert west.stake_utlk < ledgers.genesis.organizations[ledgers.names.index("west")].stake_utlk
    executor.store.close()


async def restored(ledgers: CometLedgers, name: str) -> None:
    """It says so a moment after it has the height."""

    async def said() -> bool:
        return "was restored from a snapshot" in ledgers.log(name)

    await ledgers.eventually(said, f"{name} says that it was restored")


async def test_a_node_joins_by_state_sync_from_our_snapshots(federation: Federation) -> None:
    ledgers = federation(settings={"snapshot_interval_blocks": 5})
    others = ["north", "east", "south"]
    ledgers.start(*others)
    txs = transfers(ledgers.genesis, 30, 100)
    await ledgers.reach(1, *others)
    await send(ledgers, "north", txs)
    await final(ledgers, "north", txs)
    await ledgers.reach(14, *others)
    trusted = rpc(ledgers, "north", "commit?height=3")["signed_header"]["commit"]
    ledgers.write_settings(
        "west",
        trust_height=3,
        trust_hash=trusted["block_id"]["hash"],
        comet={"sync_rpc": [ledgers.rpc_url("north"), ledgers.rpc_url("east")]},
    )
    # Killed when it has stored the snapshot's state, before CometBFT knows: it begins once more.
    ledgers.launcher = ("-m", "talkoo_sim.dying_node", Plan("kill", "after", 2, only="COMMIT").encoded())
    ledgers.start("west")

    async def died() -> bool:
        return ledgers.processes["west"].poll() == -signal.SIGKILL

    await ledgers.eventually(died, "west is killed while it joins")
    ledgers.launcher = ("-m", "talkoo_ledger")
    ledgers.start("west")
    await ledgers.reach(16, "west")
    await restored(ledgers, "west")
    height = (await ledgers.height("west")) + 1  # of the snapshot itself it has no block
    await ledgers.reach(height, "west")
    theirs = {raw.height: raw.block for raw in await ledgers.blocks("north")}
    stub = service_pb2_grpc.LedgerStub(ledgers.channel("west"))  # type: ignore[no-untyped-call]
    request = service_pb2.BlocksRequest(from_height=height, to_height=height)
    (last,) = [raw async for raw in stub.Blocks(request, wait_for_ready=True, timeout=CALL_S)]
    assert last.block == theirs[height]
    assert (await ledgers.client("west").account(address("alice"))).nonce == 30
    assert (await ledgers.client("west").account(address("bob"))) == (
        await ledgers.client("north").account(address("bob"))
    )


async def test_a_chain_of_our_own_engine_goes_on_under_cometbft(federation: Federation, tmp_path: Path) -> None:
    """All members stop at the same block, change one setting and start again: same ledger, same keys, next block.

    A member that comes later takes CometBFT's genesis from another, and a snapshot.
    """
    ledgers = federation(settings={"engine": "embedded", "snapshot_interval_blocks": 4})
    ledgers.start()
    await ledgers.reach(1)
    before = transfers(ledgers.genesis, 5, 100)
    await send(ledgers, "north", before)
    await final(ledgers, "south", before)
    halt = await ledgers.height("north") + BLOCKS_TO_THE_HALT
    ledgers.stop(*ledgers.names, how=signal.SIGTERM)
    ledgers.settings["halt_height"] = halt
    for name in ledgers.names:
        ledgers.write_settings(name)
    ledgers.start()
    await ledgers.reach(halt)
    root = (await ledgers.client("north").status()).app_hash
    ledgers.stop(*ledgers.names, how=signal.SIGTERM)

    ledgers.settings["engine"] = "cometbft"
    for name in ledgers.names:
        ledgers.write_settings(name)
    ledgers.start()
    await ledgers.reach(halt + 1)
    after = transfers(ledgers.genesis, 5, 100, first=5)
    await send(ledgers, "east", after)
    assert {result.code for result in await final(ledgers, "west", [*before, *after])} == {0}
    blocks = {raw.height: decode_block(raw.block) for raw in await ledgers.blocks("south")}
    assert sorted(blocks) == list(range(1, max(blocks) + 1))
    assert blocks[halt + 1].header.app_hash == root
    assert blocks[halt + 1].header.validators_hash == blocks[halt].header.next_validators_hash
    assert blocks[halt + 1].header.time_ns > blocks[halt].header.time_ns

    ledgers.stop("west", how=signal.SIGTERM)
    ledgers.write_settings("west", engine="embedded")
    ledgers.start("west")
    assert ledgers.processes["west"].wait(CALL_S) != 0
    assert "cannot go on from them" in ledgers.log("west")

    shutil.rmtree(ledgers.state_folder("west"))
    config = ledgers.state_folder("west") / "comet" / "config"
    config.mkdir(parents=True)
    shutil.copy(ledgers.state_folder("north") / "comet" / "config" / "genesis.json", config)
    trusted = rpc(ledgers, "north", f"commit?height={halt + 1}")["signed_header"]["commit"]
    ledgers.write_settings(
        "west",
        trust_height=halt + 1,
        trust_hash=trusted["block_id"]["hash"],
        comet={"sync_rpc": [ledgers.rpc_url("north"), ledgers.rpc_url("east")]},
    )
    height = await ledgers.height("north")
    await ledgers.reach(-(-height // 4) * 4 + 2, "north")
    ledgers.start("west")
    await ledgers.reach(height + 6, "west")
    await restored(ledgers, "west")
    assert (await ledgers.client("west").account(address("alice"))).nonce == 10
