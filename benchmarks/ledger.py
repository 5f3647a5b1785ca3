"""How many transfers a ledger of real processes makes final, and how long each takes.

    python benchmarks/ledger.py [--validators 4] [--seconds 60] [--rate TPS | --in-flight N | --idle]
                                [--dead K] [--engine embedded|cometbft|both] [--accounts 2000] [--json]

Starts one ledger node process for each validator (mutual TLS, own folder, own disk writes), sends signed transfers
between random accounts to all live nodes through their gRPC service, and watches one node's blocks. A transfer's time
runs from when it was due to be sent (open loop) or was sent (closed loop, idle) to when a block that holds it is read
from a node. The first WARM_UP_S seconds do not count. The load comes from this process and shares the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
from talkoo_api.ledger.v1 import service_pb2, service_pb2_grpc, tx_pb2
from talkoo_consensus.encoding import decode_block
from talkoo_ledger.genesis import Genesis, GenesisAccount, GenesisOrganization, default_params

from talkoo_core.amounts import UTLK_PER_TLK
from talkoo_core.errors import TalkooError, Unavailable
from talkoo_core.ids import address_of_key
from talkoo_core.signing import PrivateKey
from talkoo_runtime.grpc_client import error_from_rpc
from talkoo_runtime.transactions import sign_transaction, transaction_hash
from talkoo_sim.comet_processes import CometLedgers
from talkoo_sim.figures import spread
from talkoo_sim.ledger_chain import key_of
from talkoo_sim.ledger_processes import Ledgers

CHAIN_ID = "bench-1"
WARM_UP_S = 5.0
DRAIN_S = 60.0
SEND_S = 60.0
REMIND_S = 10.0
START_S = 120.0
TICK_S = 0.01
UNAVAILABLE_PAUSE_S = 0.2
MOST_AT_ONCE = 250
IDLE_PAUSE_S = 0.5
FEE_UTLK = 100


@dataclass(slots=True)
class Sender:
    """One account and the nonces it has used; always sends through the same node."""

    key: PrivateKey
    address: str
    node: int
    nonce: int = 0
    waiting: dict[bytes, Waiting] = field(default_factory=dict)
    """On their way, by hash, in order of nonces."""


@dataclass(slots=True)
class Waiting:
    """A signed transfer on its way. `due` in seconds of the monotonic clock."""

    data: bytes
    due: float
    sender: Sender


@dataclass
class Tally:
    """What happened to the transfers. Latencies in seconds, only of those due after the warm-up."""

    latencies: list[float] = field(default_factory=list)
    final: int = 0
    sent_again: int = 0
    blocks: list[tuple[float, int, int]] = field(default_factory=list)
    """(when read, transactions, bytes) of each block of the measured time."""


def make_genesis(validators: int, senders: Sequence[Sender]) -> Genesis:
    organizations = [
        GenesisOrganization(
            name=name,
            owner_key=key_of(name).public.raw.hex(),
            consensus_key=key_of(f"{name}-consensus").public.raw.hex(),
            scheduler_key=key_of(f"{name}-scheduler").public.raw.hex(),
            validator_key=key_of(f"{name}-validator").public.raw.hex(),
            stake_utlk=1_000 * UTLK_PER_TLK,
            node_keys=[],
        )
        for name in (f"org-{number:02d}" for number in range(validators))
    ]
    accounts = [GenesisAccount(sender.address, 1_000 * UTLK_PER_TLK) for sender in senders]
    return Genesis(CHAIN_ID, time.time_ns(), default_params(), organizations, accounts)


def make_senders(count: int, nodes: int) -> list[Sender]:
    senders = []
    for number in range(count):
        key = PrivateKey.from_seed(hashlib.sha256(b"bench %d" % number).digest())
        senders.append(Sender(key, address_of_key(key.public.raw), number % nodes))
    return senders


class Load:
    """Makes transfers, sends them, and learns from one node's blocks which are final."""

    def __init__(self, ledgers: Ledgers, live: Sequence[str], senders: Sequence[Sender], seed: int) -> None:
        self._senders = senders
        self._dice = random.Random(seed)
        self._stubs = [service_pb2_grpc.LedgerStub(ledgers.channel(name)) for name in live]  # type: ignore[no-untyped-call]
        self._queues: list[deque[Waiting]] = [deque() for _ in live]
        self._waiting: dict[bytes, Waiting] = {}
        self._freed = asyncio.Event()
        self.tally = Tally()
        self.measured_from = 0.0
        self.measured_to = float("inf")

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def transfer(self, due: float) -> Waiting:
        """The next transfer of a random account to another."""
        sender, receiver = self._dice.sample(self._senders, 2)
        message = tx_pb2.Transfer(to=receiver.address, amount_utlk=self._dice.randint(1, 1_000))
        data = sign_transaction(sender.key, CHAIN_ID, sender.nonce, FEE_UTLK, message)
        sender.nonce += 1
        return Waiting(data, due, sender)

    def queue(self, waiting: Waiting) -> None:
        tx_hash = transaction_hash(waiting.data)
        self._waiting[tx_hash] = waiting.sender.waiting[tx_hash] = waiting
        self._queues[waiting.sender.node].append(waiting)

    async def send(self, node: int) -> None:
        """Send what is queued for one node, in order, forever. What finds no room is sent again before the rest."""
        queue, stub = self._queues[node], self._stubs[node]
        while True:
            if not queue:
                await asyncio.sleep(TICK_S)
                continue
            batch = [queue.popleft() for _ in range(min(len(queue), MOST_AT_ONCE))]
            request = service_pb2.BroadcastManyRequest(txs=[waiting.data for waiting in batch])
            try:
                response = await stub.BroadcastMany(request, timeout=SEND_S, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                trouble = error_from_rpc(error)
                if not isinstance(trouble, Unavailable):
                    raise SystemExit(f"a ledger node does not take transfers: {trouble}") from error
                self.tally.sent_again += len(batch)  # it has too much to do; the delay counts
                queue.extendleft(reversed(batch))
                await asyncio.sleep(UNAVAILABLE_PAUSE_S)
                continue
            if response.refused:
                self._send_again(queue, batch, response.refused)
                await asyncio.sleep(TICK_S)

    def _send_again(self, queue: deque[Waiting], batch: list[Waiting], refused: Iterable[service_pb2.Refusal]) -> None:
        """A sender that found no room, or whose earlier transfer had to make room, sends all of its own again."""
        senders: dict[str, Sender] = {}
        for each in refused:
            if each.code not in ("mempool_full", "sender_full", "nonce_gap", "nonce_too_low"):
                raise SystemExit(f"a transfer was refused: {each.message}")
            sender = batch[each.index].sender
            if each.code != "nonce_too_low":  # it was sent twice, and the first is final
                senders[sender.address] = sender
        again = [waiting for sender in senders.values() for waiting in sender.waiting.values()]
        self.tally.sent_again += len(again)
        queue.extendleft(reversed(again))

    async def remind(self) -> None:
        """As a client that waits: send again what should be final long since, for it may have had to make room."""
        while True:
            await asyncio.sleep(REMIND_S)
            overdue = time.monotonic() - REMIND_S
            late = {each.sender.address: each.sender for each in self._waiting.values() if each.due < overdue}
            for sender in late.values():
                self.tally.sent_again += len(sender.waiting)
                self._queues[sender.node].extend(sender.waiting.values())

    async def follow(self) -> None:
        """Read blocks as they are decided, forever."""
        stub = self._stubs[0]
        async for events in stub.Follow(service_pb2.FollowRequest(from_height=1)):
            if not events.txs:
                self._block(events, 0)
                continue
            request = service_pb2.BlocksRequest(
                from_height=events.height, to_height=events.height, without_results=True
            )
            async for raw in stub.Blocks(request, timeout=30):
                txs = decode_block(raw.block).data.txs
                self._block(events, len(txs))
                self._settle(txs)

    def _block(self, events: service_pb2.BlockEvents, txs: int) -> None:
        now = time.monotonic()
        if self.measured_from <= now < self.measured_to:
            self.tally.blocks.append((now, txs, events.size_bytes))

    def _settle(self, txs: Sequence[bytes]) -> None:
        now = time.monotonic()
        for data in txs:
            tx_hash = transaction_hash(data)
            waiting = self._waiting.pop(tx_hash, None)
            if waiting is None:
                continue
            del waiting.sender.waiting[tx_hash]
            if self.measured_from <= now < self.measured_to:
                self.tally.final += 1
            if self.measured_from <= waiting.due < self.measured_to:
                self.tally.latencies.append(now - waiting.due)
        self._freed.set()

    async def open_loop(self, transfers: Sequence[Waiting], began: float) -> None:
        """Each transfer is queued when it is due (until here counted from the beginning), whatever the others do."""
        for waiting in transfers:
            waiting.due += began
            wait_s = waiting.due - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(max(wait_s, TICK_S))
            self.queue(waiting)

    async def closed_loop(self, in_flight: int, until: float) -> None:
        """Always so many transfers on their way."""
        while time.monotonic() < until:
            for _ in range(in_flight - self.in_flight):
                self.queue(self.transfer(time.monotonic()))
            self._freed.clear()
            await self._freed.wait()

    async def drained(self, deadline_s: float) -> None:
        """Wait until nothing is on its way, at most so long."""
        end = time.monotonic() + deadline_s
        while self.in_flight and time.monotonic() < end:
            self._freed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), end - time.monotonic())

    async def one_by_one(self, until: float) -> None:
        while time.monotonic() < until:
            self.queue(self.transfer(time.monotonic()))
            while self.in_flight:
                self._freed.clear()
                await self._freed.wait()
            await asyncio.sleep(IDLE_PAUSE_S * self._dice.uniform(0.5, 1.5))


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds and resident bytes of one node, its children included."""

    cpu_s: float
    rss_bytes: int


def usage(ledgers: Ledgers, live: Sequence[str]) -> dict[str, Usage]:
    answer = {}
    for name in live:
        process = psutil.Process(ledgers.processes[name].pid)
        family = [process, *process.children(recursive=True)]
        times = [each.cpu_times() for each in family]
        answer[name] = Usage(sum(t.user + t.system for t in times), sum(each.memory_info().rss for each in family))
    return answer


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def until_all_decide(ledgers: Ledgers, live: Sequence[str]) -> None:
    for name in live:
        client = ledgers.client(name)

        async def there(client: Any = client) -> bool:
            return bool((await client.status()).height >= 2)

        await ledgers.eventually(there, f"{name} decides its first blocks", START_S)


async def measure(options: argparse.Namespace, engine: str, folder: Path) -> dict[str, Any]:
    senders = make_senders(options.accounts, options.validators - options.dead)
    genesis = make_genesis(options.validators, senders)
    kit = CometLedgers if engine == "cometbft" else Ledgers
    ledgers = kit(folder, genesis, {"empty_block_interval_ms": 1_000})
    live = ledgers.names[: options.validators - options.dead]
    try:
        ledgers.start(*live)
        await until_all_decide(ledgers, live)
        load = Load(ledgers, live, senders, options.seed)
        transfers = list(scheduled(load, options))
        background = [asyncio.create_task(load.send(node)) for node in range(len(live))]
        background += [asyncio.create_task(load.follow()), asyncio.create_task(load.remind())]
        result = await run(load, options, transfers, ledgers, live)
        for task in background:
            if task.done():
                task.result()
            task.cancel()
    finally:
        await ledgers.close()
    result["state_bytes"] = {name: folder_bytes(folder / name / "state") for name in live[:1]}
    return {"engine": engine, **result}


def scheduled(load: Load, options: argparse.Namespace) -> Iterator[Waiting]:
    """The open loop's transfers, signed beforehand: signing is the senders' work, elsewhere."""
    if options.idle or options.in_flight:
        return
    for number in range(int(options.rate * (WARM_UP_S + options.seconds))):
        yield load.transfer(number / options.rate)


async def run(
    load: Load,
    options: argparse.Namespace,
    transfers: Sequence[Waiting],
    ledgers: Ledgers,
    live: Sequence[str],
) -> dict[str, Any]:
    began = time.monotonic()
    load.measured_from, load.measured_to = began + WARM_UP_S, began + WARM_UP_S + options.seconds
    if options.idle:
        work = asyncio.create_task(load.one_by_one(load.measured_to))
    elif options.in_flight:
        work = asyncio.create_task(load.closed_loop(options.in_flight, load.measured_to))
    else:
        work = asyncio.create_task(load.open_loop(transfers, began))
    await asyncio.sleep(WARM_UP_S)
    before, own_before = usage(ledgers, live), psutil.Process().cpu_times()
    await asyncio.sleep(max(load.measured_to - time.monotonic(), 0))
    after, own_after = usage(ledgers, live), psutil.Process().cpu_times()
    waiting_at_end = load.in_flight
    if not options.in_flight:
        await asyncio.wait_for(work, DRAIN_S)
    else:
        work.cancel()
    await load.drained(DRAIN_S)
    own_s = own_after.user + own_after.system - own_before.user - own_before.system
    return figures(load, options, before, after, own_s) | {"waiting_at_end": waiting_at_end, "lost": load.in_flight}


def figures(
    load: Load, options: argparse.Namespace, before: dict[str, Usage], after: dict[str, Usage], own_s: float
) -> dict[str, Any]:
    tally, seconds = load.tally, options.seconds
    cpu_s = {name: after[name].cpu_s - before[name].cpu_s for name in after}
    full = [block for block in tally.blocks if block[1]]
    tps = tally.final / seconds
    cores = sum(cpu_s.values()) / seconds
    return {
        "tps": round(tps, 1),
        "latency_s": spread(tally.latencies),
        "sent_again": tally.sent_again,
        "blocks": len(tally.blocks),
        "block_interval_s": spread([b[0] - a[0] for a, b in zip(tally.blocks, tally.blocks[1:], strict=False)]),
        "txs_per_block": spread([float(block[1]) for block in full]),
        "block_bytes": spread([float(block[2]) for block in full]),
        "node_cpu_cores": {name: round(value / seconds, 3) for name, value in cpu_s.items()},
        "load_cpu_cores": round(own_s / seconds, 3),
        "tps_per_node_core": round(tps / cores, 1) if cores else 0.0,
        "node_cpu_us_per_tx": round(cores / tps / len(cpu_s) * 1e6, 1) if tps else 0.0,
        "node_rss_mb": {name: round(each.rss_bytes / 1e6, 1) for name, each in after.items()},
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=1_000.0, help="open loop: transfers per second")
    parser.add_argument("--in-flight", type=int, default=0, help="closed loop: always so many on their way")
    parser.add_argument("--idle", action="store_true", help="one at a time, with pauses")
    parser.add_argument("--dead", type=int, default=0, help="so many validators are not running")
    parser.add_argument("--engine", choices=["embedded", "cometbft", "both"], default="embedded")
    parser.add_argument("--accounts", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if not 0 <= options.dead < options.validators or options.validators < 1 or options.accounts < 2:
        parser.error("there must be at least one live validator and two accounts")
    if options.seconds <= 0 or options.rate <= 0 or options.in_flight < 0:
        parser.error("--seconds and --rate take positive numbers, --in-flight 0 or more")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    engines = ["embedded", "cometbft"] if options.engine == "both" else [options.engine]
    report: dict[str, Any] = {
        "validators": options.validators,
        "dead": options.dead,
        "load": "idle" if options.idle else f"closed {options.in_flight}" if options.in_flight else options.rate,
        "seconds": options.seconds,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "runs": [],
    }
    for engine in engines:
        with tempfile.TemporaryDirectory(prefix="talkoo-bench-") as folder:
            report["runs"].append(asyncio.run(measure(options, engine, Path(folder))))
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    for each in report["runs"]:
        latency = each["latency_s"]
        print(
            f"{each['engine']}: {each['tps']} transfers/s over {options.seconds:.0f} s with {options.validators} "
            f"validators ({options.dead} dead); p50 {latency.get('p50')} s, p95 {latency.get('p95')} s, p99 "
            f"{latency.get('p99')} s; {each['blocks']} blocks; {each['node_cpu_us_per_tx']} us of CPU per node and "
            f"transfer; {each['lost']} lost"
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except TalkooError as error:
        sys.exit(str(error))
